"""The servers that are measured, each a process of its own that is there for one `with`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from raycd.errors import RunError

ROOT = Path(__file__).parents[3]
START_S, STOP_S = 180, 60


@contextmanager
def floor(bundle: Path, threads: int, scratch: Path) -> Iterator[int]:
    """The floor's port."""
    command = ["-m", "jobs.benchmarks.serving.floor", f"--bundle={bundle}", f"--threads={threads}"]
    with _running(command, scratch, ready="/healthz") as port:
        yield port


@contextmanager
def service(bundle: Path, proxy: str, options: Sequence[str], scratch: Path) -> Iterator[int]:
    """The port of raycd's service behind Ray Serve's `proxy`."""
    command = [str(ROOT / "serve" / "app.py"), f"--bundle={bundle}", f"--proxy={proxy}", *options]
    with _running(command, scratch, ready="/readyz") as port:
        yield port


@contextmanager
def _running(command: Sequence[str], scratch: Path, ready: str) -> Iterator[int]:
    """Start Python with `command` and a free --port, wait until `ready` answers, and end it by
    SIGTERM.
    """
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(scratch)}
    log = scratch / "server.log"
    with log.open("w", encoding="utf-8") as output:
        server = subprocess.Popen(
            [sys.executable, *command, f"--port={port}"],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        try:
            _wait(server, f"http://127.0.0.1:{port}{ready}", log)
            yield port
        finally:
            server.terminate()
            try:
                server.wait(STOP_S)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Until the server answers. Raises RunError where it ends or takes too long."""
    until = time.monotonic() + START_S
    while time.monotonic() < until and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    raise RunError(
        "a server that is to be measured did not start",
        got="\n            ".join(lines[-5:]) or f"no word in {START_S} s",
    )


def free_port() -> int:
    """One that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
