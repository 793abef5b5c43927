"""Connections to the gallery database: SQLite in WAL mode, or PostgreSQL."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError

from raycd import extras
from raycd.durable import PRIVATE_FILE
from raycd.errors import GalleryError
from raycd.gallery_db import faults
from raycd.redact import without_parameters, without_passwords

CONNECT_S = 5
STATEMENT_S = 600  # the longest statement copies a bundle's gallery
IDLE_S = 60  # a frozen process must not keep the lock of all writers for ever
_DETECT_LOST_HOST = {
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}

_WRITES = "raycd_writes"  # execution option of connections that write


def address(url: str) -> URL:
    """Return the address that a URL, or a path to a SQLite file, means.

    Links are resolved, so that the one who locks a SQLite file and the one who opens it mean the
    same file.

    Raises:
        GalleryError: The URL is malformed, or of another database.
    """
    expected = "a file, sqlite:///<file> or postgresql://<user>@<host>/<database>"
    try:
        parsed = make_url(url) if "://" in url else URL.create("sqlite", database=url)
    except (ArgumentError, ValueError) as error:
        what = "the gallery's address is malformed"
        raise GalleryError(what, got=shown(url), expected=expected) from error
    if parsed.get_backend_name() == "postgresql":
        extras.require("psycopg", "a gallery in PostgreSQL")
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        raise GalleryError("the gallery cannot be kept there", got=shown(url), expected=expected)
    return parsed.set(database=os.path.realpath(os.path.expanduser(parsed.database or "")))


def engine(url: URL, *, busy_s: float) -> Engine:
    """Return connections to an `address`; a write waits for another one for `busy_s` seconds."""
    if url.get_backend_name() == "sqlite":
        _make_file(Path(url.database or ""))
        made = create_engine(url, connect_args={"timeout": busy_s}, hide_parameters=True)
        event.listen(made, "connect", partial(_sqlite_connected, busy_s))
        event.listen(made, "begin", _sqlite_begins)
        return made
    arguments = {"connect_timeout": CONNECT_S, "application_name": "raycd", **_DETECT_LOST_HOST}
    made = create_engine(url, pool_pre_ping=True, connect_args=arguments, hide_parameters=True)
    limits = {
        "lock_timeout": busy_s,
        "statement_timeout": STATEMENT_S,
        "idle_in_transaction_session_timeout": IDLE_S,
    }

    @event.listens_for(made, "connect")
    def _postgresql_connected(connection: Any, record: object) -> None:
        with connection.cursor() as cursor:
            for name, seconds in limits.items():
                cursor.execute("SELECT set_config(%s, %s, false)", (name, str(int(1000 * seconds))))
            # An acknowledged write survives a power cut of the server. A server that asks for more
            # (remote_apply, say) keeps its setting.
            cursor.execute(
                "SELECT set_config('synchronous_commit', 'on', false) "
                "WHERE current_setting('synchronous_commit') = 'off'"
            )
        connection.commit()

    return made


def writing(of: Engine) -> Engine:
    """Return the same connections for transactions that write."""
    return of.execution_options(**{_WRITES: True})


def _sqlite_connected(busy_s: float, connection: Any, record: object) -> None:
    # Python's driver begins transactions by itself, but not before reading or changing tables:
    # `_sqlite_begins` does it instead.
    connection.isolation_level = None
    # Of a new file: features of 2.5 kB (D 640) fill such pages best.
    connection.execute("PRAGMA page_size = 8192")
    # WAL: readers go on beside the one writer. FULL: commits survive a power cut.
    _use_wal(connection, busy_s)
    connection.execute("PRAGMA synchronous = FULL")
    # The log shrinks again to 64 MiB after a large import.
    connection.execute("PRAGMA journal_size_limit = 67108864")


def _use_wal(connection: Any, busy_s: float) -> None:
    """Switch to WAL, with retries: meanwhile SQLite refuses other processes that switch, too."""
    until = time.monotonic() + busy_s
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)


def _sqlite_begins(connection: Connection) -> None:
    # A transaction that reads first and then writes cannot wait for another writer (SQLite fails it
    # at once, for its snapshot is old): it takes the lock at its begin.
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _make_file(file: Path) -> None:
    """Make the folder, and a file that only its owner may read: SQLite's log gets its rights."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = faults.of_file(error)
        raise GalleryError(
            "the gallery's folder cannot be made",
            reason,
            got=f"{file.parent}: {error.strerror}",
            do=faults.DO[reason],
        ) from error
    # O_EXCL: closing a file that exists would release the locks that SQLite holds on it. Whatever
    # else fails here, SQLite reports.
    with suppress(OSError):
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE))


def shown(url: str) -> str:
    """Return the address without its password and without its parameters, which may hold one."""
    return without_parameters(url) if "://" in url else without_passwords(url)
