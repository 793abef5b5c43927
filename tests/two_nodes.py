"""A Ray cluster of two nodes on this machine, each with a folder of its own for temporary files."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from serve.start.local import free_port

RAY = str(Path(sys.executable).parent / "ray")


@dataclass(frozen=True)
class Nodes:
    """What a driver needs to use them, and where its processes write, in folders apart."""

    environment: dict[str, str]
    root: Path
    join: Callable[[], None]
    """Start the second node, where it is not there from the beginning."""


@contextmanager
def two_nodes(
    environment: Mapping[str, str], cpus: tuple[int, int] = (1, 1), *, late: bool = False
) -> Iterator[Nodes]:
    """Run two nodes of so many CPUs, with these variables; the second one `late`: by `join`."""
    port = free_port()
    root = Path(tempfile.mkdtemp(prefix="raycd-"))  # a short path: Ray makes sockets in it
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    shared = inherited | {
        "PATH": f"{Path(RAY).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONUNBUFFERED": "1",
        "RAY_TMPDIR": str(root),
        **environment,
    }
    try:
        with ExitStack() as stack:
            log = stack.enter_context(open(root / "ray.log", "w"))

            def start_node(number: int) -> None:
                home = root / f"node-{number}"
                home.mkdir()
                role = [f"--address=127.0.0.1:{port}"]
                if number == 0:
                    role = ["--head", f"--port={port}", "--include-dashboard=false"]
                    role += [f"--ray-client-server-port={free_port()}"]
                role += [f"--dashboard-agent-listen-port={free_port()}"]
                options = ["--block", f"--num-cpus={cpus[number]}", "--node-ip-address=127.0.0.1"]
                options += ["--min-worker-port=0", "--max-worker-port=0"]
                node = subprocess.Popen(
                    [RAY, "start", *role, *options],
                    env=shared | {"HOME": str(home), "TMPDIR": str(home)},
                    stdout=log,
                    stderr=log,
                    cwd=home,
                )
                stack.callback(_end, node)
                _wait(root / "ray.log", number + 1, node)

            start_node(0)
            if not late:
                start_node(1)
            home = root / "driver"
            home.mkdir()
            driver = {"RAY_ADDRESS": f"127.0.0.1:{port}", "HOME": str(home), "TMPDIR": str(home)}
            yield Nodes(shared | driver, root, lambda: start_node(1))
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _wait(log: Path, started: int, node: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 120
    while log.read_text().count("Ray runtime started.") < started:
        assert node.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.3)


def _end(node: subprocess.Popen[bytes]) -> None:
    node.send_signal(signal.SIGTERM)
    node.wait(60)
