"""The servers that are measured, each a process of its own that is there for one `with`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from raycd.errors import RunError
from serve.start.local import free_port

ROOT = Path(__file__).parents[3]
START_S, STOP_S = 180, 60


def floor(bundle: Path, threads: int, scratch: Path) -> AbstractContextManager[int]:
    """Serve a bundle by the floor meanwhile; gives the port."""
    module = ["-m", "jobs.benchmarks.serving.floor"]
    return _running([*module, f"--bundle={bundle}", f"--threads={threads}"], scratch, "/healthz")


def service(
    bundle: Path, proxy: str, options: Sequence[str], scratch: Path
) -> AbstractContextManager[int]:
    """Serve a bundle by raycd behind Ray Serve's `proxy` meanwhile; gives the port."""
    program = str(ROOT / "serve" / "app.py")
    return _running(
        [program, f"--bundle={bundle}", f"--proxy={proxy}", *options], scratch, "/readyz"
    )


@contextmanager
def _running(command: Sequence[str], scratch: Path, ready: str) -> Iterator[int]:
    """Start Python with `command` and a free --port, wait until `ready` answers, end it by SIGTERM.

    Raises RunError where the server ends or takes too long.
    """
    port, log = free_port(), scratch / "server.log"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(scratch)}
    command = [sys.executable, *command, f"--port={port}"]
    with log.open("w", encoding="utf-8") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        until = time.monotonic() + START_S
        while not _answers(f"http://127.0.0.1:{port}{ready}"):
            if time.monotonic() > until or server.poll() is not None:
                lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
                what = "a server that is to be measured did not start"
                raise RunError(what, got="\n            ".join(lines) or f"nothing in {START_S} s")
            time.sleep(0.2)
        yield port
    finally:
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(STOP_S)
        server.kill()
        server.wait()


def _answers(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=5):  # its errors are OSErrors
        return True
    return False
