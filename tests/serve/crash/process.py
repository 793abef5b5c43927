"""The service as a user starts it: `serve/app.py`, a Ray of its own and two replicas; and how they
are killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import psutil

from serve.start.local import free_port

ROOT = Path(__file__).parents[3]
PATIENCE_S = (
    180  # with a machine that does other things, too; what is waited for comes much earlier
)


def wait_until(state: Callable[[], object], what: str) -> None:
    """Wait until `state` is true."""
    end = time.monotonic() + PATIENCE_S
    while not state():
        assert time.monotonic() < end, f"waited {PATIENCE_S} s for: {what}"
        time.sleep(0.05)


def command(*arguments: str, log: Path) -> subprocess.Popen[str]:
    """Start `serve/app.py`, whose errors go to the end of a file."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with log.open("a") as errors:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "serve" / "app.py"), *arguments],
            env=environment | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )


def refusal(*arguments: str, log: Path) -> str:
    """Return what the command says where it does not start: one message, and exit code 2."""
    process = command("--port", str(free_port()), *arguments, log=log)
    out, _ = process.communicate(timeout=PATIENCE_S)
    said = log.read_text()
    assert process.returncode == 2, said
    assert "raycd serves" not in out
    assert said.count("error: ") == 1, said
    assert "Traceback" not in said
    return said


class Service:
    """A service that can be started again, with the same options, on the same port."""

    def __init__(self, *arguments: str, log: Path) -> None:
        port = str(free_port())
        self.url = f"http://127.0.0.1:{port}"
        self._arguments = (
            "--port",
            port,
            "--replicas",
            "2",
            "--threads",
            "1",
            "--cpus",
            "0.4",
            *arguments,
        )
        self._log = log
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self.kill()

    def start(self) -> None:
        """Start it, and wait until both replicas answer."""
        process = self._process = command(*self._arguments, log=self._log)
        assert process.stdout is not None
        said = process.stdout.readline()
        assert "raycd serves" in said, (
            f"{said!r}, exit code {process.poll()}: {self._log.read_text()}"
        )
        wait_until(self.is_whole, "both replicas to answer")

    @property
    def pid(self) -> int:
        """Return the number of its process."""
        assert self._process is not None
        return self._process.pid

    def look_again(self) -> str:
        """Have it look at its bundle again; return what it says of that."""
        assert self._process is not None
        assert self._process.stdout is not None
        self._process.send_signal(signal.SIGHUP)
        while not (said := self._process.stdout.readline()).startswith("raycd serves the bundle"):
            assert said, self._log.read_text()
        return said

    def is_whole(self) -> bool:
        """Return whether both replicas live and answer."""
        if len(self._replicas()) < 2:  # one that was killed is still counted for a while
            return False
        try:
            response = httpx.get(f"{self.url}/readyz", timeout=PATIENCE_S)
        except httpx.TransportError:
            return False
        return response.status_code == 200 and response.json()["replicas"] == 2

    def kill(self) -> None:
        """Kill every process of it with SIGKILL."""
        assert self._process is not None
        for process in _stopped(psutil.Process(self._process.pid)):
            process.kill()
        self._process.communicate()
        self._process = None

    def kill_replicas(self, most: int = 2) -> None:
        """Kill some of them with SIGKILL; others will replace them."""
        victims = self._replicas()[:most]
        for victim in victims:
            victim.kill()
        wait_until(lambda: not set(victims) & set(self._replicas()), "replicas to die")

    def _replicas(self) -> Sequence[psutil.Process]:
        assert self._process is not None
        family = psutil.Process(self._process.pid).children(recursive=True)
        return [process for process in family if _title(process).startswith("ray::ServeReplica")]


def _title(process: psutil.Process) -> str:
    """Return what a process calls itself; nothing where it has ended."""
    try:
        return next(iter(process.cmdline()), "")
    except psutil.Error:
        return ""


def _stopped(process: psutil.Process) -> list[psutil.Process]:
    """Stop the process and all below it, so that none of them starts another one."""
    try:
        process.suspend()
        return [process, *(each for child in process.children() for each in _stopped(child))]
    except psutil.NoSuchProcess:
        return []
