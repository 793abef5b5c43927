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

from raycd.durable import PRIVATE_FILE
from raycd.errors import GalleryError
from raycd.gallery_db import faults
from raycd.redact import without_passwords

CONNECT_S = 5
STATEMENT_S = 600  # the longest statement is the copy of a bundle's gallery

IDLE_S = 60  # a frozen process must not keep the lock of all writers for ever
_NOTICE_A_LOST_HOST = {
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}

_WRITES = "raycd_writes"  # execution option of connections that write


def address(url: str) -> URL:
    """Where the database is, of a URL or of a path to a SQLite file. Raises GalleryError for an
    impossible one.

    A SQLite file has one name, whichever links lead to it: who locks it and who opens it mean the
    same file.
    """
    expected = "a file, sqlite:///<file> or postgresql://<user>@<host>/<database>"
    try:
        parsed = make_url(url) if "://" in url else URL.create("sqlite", database=url)
    except (ArgumentError, ValueError) as error:
        raise GalleryError(
            "the gallery's address is malformed", got=shown(url), expected=expected
        ) from error
    if parsed.get_backend_name() == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if (
        parsed.get_backend_name() != "sqlite"
        or not parsed.database
        or parsed.database == ":memory:"
    ):
        raise GalleryError("the gallery cannot be kept there", got=shown(url), expected=expected)
    return parsed.set(database=os.path.realpath(os.path.expanduser(parsed.database)))


def engine(url: URL, *, busy_s: float) -> Engine:
    """The connections to an `address`; `busy_s` is how long a write waits for another's."""
    if url.get_backend_name() == "sqlite":
        _make_file(Path(url.database or ""))
        made = create_engine(url, connect_args={"timeout": busy_s}, hide_parameters=True)
        event.listen(made, "connect", partial(_sqlite_connected, busy_s))
        event.listen(made, "begin", _sqlite_begins)
        return made
    arguments = {"connect_timeout": CONNECT_S, "application_name": "raycd", **_NOTICE_A_LOST_HOST}
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
            # An acknowledged write survives a power cut of the server; where it asks for more than
            # that, more it is.
            cursor.execute(
                "SELECT set_config('synchronous_commit', 'on', false) "
                "WHERE current_setting('synchronous_commit') = 'off'"
            )
        connection.commit()

    return made


def writing(of: Engine) -> Engine:
    """The same connections, for transactions that write."""
    return of.execution_options(**{_WRITES: True})


def _sqlite_connected(busy_s: float, connection: Any, record: object) -> None:
    # Python's driver would begin transactions by itself, not all of them, and none for tables;
    # `_sqlite_begins` does.
    connection.isolation_level = None
    connection.execute(
        "PRAGMA page_size = 8192"
    )  # of a new file: features of 2.5 kB fill such pages best
    # Readers go on beside the one writer. FULL: what was committed survives a power cut, too.
    _use_wal(connection, busy_s)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(
        "PRAGMA journal_size_limit = 67108864"
    )  # the log shrinks again after a large import


def _use_wal(connection: Any, busy_s: float) -> None:
    """Where processes open a new file at once, SQLite lets one make the change and does not have
    the others wait.
    """
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
    # A transaction that reads first and then writes could not wait for another writer: it takes the
    # lock at once.
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _make_file(file: Path) -> None:
    """The folder, and a new file that only its owner may read; SQLite gives its log the same
    rights.
    """
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
    with suppress(
        OSError
    ):  # it is there, and closing it would release SQLite's locks; of all else SQLite tells
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE))


def shown(url: str) -> str:
    """The address without its parameters, one of which may be a password, and without the password
    before its host.
    """
    return without_passwords(url.partition("?")[0] if "://" in url else url)
