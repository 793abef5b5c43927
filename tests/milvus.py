"""Milvus Lite as a process of its own, on a free port: it can be killed and started again."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from serve.start.local import free_port


class Milvus:
    """A server of Milvus Lite in a folder, on the same port whenever it is started."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Return its address, as the service takes it."""
        return f"milvus://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        server = ["-m", "milvus_lite", "server", "--data-dir", str(self._folder)]
        log = (self._folder.parent / "milvus.log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [sys.executable, *server, "--host", "127.0.0.1", "--port", str(self._port)],
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + 120
        while time.monotonic() < end and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self._port), 1).close()
                return
            except OSError:
                time.sleep(0.05)
        raise AssertionError(Path(log.name).read_text())

    def kill(self) -> None:
        """Kill it with SIGKILL, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
