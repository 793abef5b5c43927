"""A real PostgreSQL for tests: its own data folder, on loopback, ended by its own pid."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import psutil
import psycopg
import pytest

READY_S = 60
CONFIG = """
listen_addresses = '127.0.0.1'
fsync = on
max_connections = 200
unix_socket_directories = '{folder}'
log_destination = stderr
"""


def programs() -> Path | None:
    """Return the folder of initdb and postgres, newest first; None where there are none."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"),
        key=lambda path: int(path.parts[-3]),
        reverse=True,
    )
    on_path = shutil.which("initdb")
    return found[0].parent if found else Path(on_path).resolve().parent if on_path else None


class Postgres:
    """A server; the test is skipped where the programs are not installed."""

    def __init__(self, folder: Path) -> None:
        binaries = programs()
        if binaries is None:
            pytest.skip(
                "PostgreSQL's programs are not installed (Debian: apt-get install postgresql)"
            )
        self._binaries, self._data = binaries, folder / "data"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._log = folder / "postgres.log"
        self._process: subprocess.Popen[bytes] | None = None
        folder.chmod(0o755)
        self._data.mkdir()
        if self._user is not None:
            shutil.chown(self._data, self._user)
        initdb = [
            str(binaries / "initdb"),
            "-D",
            str(self._data),
            "-U",
            "raycd",
            "--auth=trust",
            "-E",
            "UTF8",
            "-N",
        ]
        subprocess.run(initdb, user=self._user, cwd="/", check=True, stdout=subprocess.DEVNULL)
        with (self._data / "postgresql.conf").open("a", encoding="utf-8") as config:
            config.write(CONFIG.format(folder=self._data))

    @property
    def _user(self) -> str | None:
        """Return a user for PostgreSQL, which does not run as root."""
        if os.geteuid() != 0:
            return None
        known = {entry.pw_name for entry in pwd.getpwall()}
        return "postgres" if "postgres" in known else "nobody"

    def start(self) -> None:
        """Start, maybe again on the same data; return when the server answers."""
        with self._log.open("ab") as log:
            command = [
                str(self._binaries / "postgres"),
                "-D",
                str(self._data),
                "-p",
                str(self.port),
            ]
            self._process = subprocess.Popen(
                command, user=self._user, cwd="/", stdout=log, stderr=log
            )
        until = time.monotonic() + READY_S
        while True:
            try:
                psycopg.connect(self.url("postgres"), connect_timeout=5).close()
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > until:
                    raise AssertionError(self._log.read_text(errors="replace")[-2000:]) from None
                time.sleep(0.1)

    def kill(self) -> None:
        """End it at once, as a power cut would: its processes end by themselves then."""
        assert self._process is not None
        family = psutil.Process(self._process.pid).children(recursive=True)
        self._end(signal.SIGKILL)
        until = time.monotonic() + READY_S
        while alive := [process for process in family if _lives(process)]:
            assert time.monotonic() < until, alive
            time.sleep(0.05)
        (self._data / "postmaster.pid").unlink(missing_ok=True)

    def stop(self) -> None:
        """End it in an orderly way."""
        self._end(signal.SIGINT)

    def _end(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(60)
            self._process = None

    def url(self, database: str) -> str:
        """Return the URL of a database of it."""
        return f"postgresql://raycd@127.0.0.1:{self.port}/{database}"

    def create(self, database: str) -> str:
        """Return the URL of a new, empty database."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{database}"')
        return self.url(database)


def _lives(process: psutil.Process) -> bool:
    """Return whether a process runs, and has not ended without being waited for."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
