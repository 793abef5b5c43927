"""Connections to the database of the catalogue: SQLite in WAL mode, or PostgreSQL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError

from raycd.errors import CatalogueError
from raycd.redact import without_passwords

CONNECT_S = 5
STATEMENT_S = 600  # the longest statement is the copy of a bundle's gallery

_WRITES = "raycd_writes"  # execution option of connections that write


def address(url: str) -> URL:
    """Where the database is, of a URL or of a path to a SQLite file. Raises CatalogueError for an impossible one."""
    expected = "a file, sqlite:///<file> or postgresql://<user>@<host>/<database>"
    try:
        parsed = make_url(url) if "://" in url else URL.create("sqlite", database=url)
    except (ArgumentError, ValueError) as error:
        raise CatalogueError("the gallery's address is malformed", got=_shown(url), expected=expected) from error
    if parsed.get_backend_name() == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() != "sqlite" or not parsed.database or parsed.database == ":memory:":
        raise CatalogueError("the gallery cannot be kept there", got=_shown(url), expected=expected)
    return parsed


def engine(url: URL, *, busy_s: float) -> Engine:
    """The connections to it; `busy_s` is how long a write waits for another's."""
    if url.get_backend_name() == "sqlite":
        Path(url.database or "").expanduser().absolute().parent.mkdir(parents=True, exist_ok=True)
        made = create_engine(url, connect_args={"timeout": busy_s})
        event.listen(made, "connect", _sqlite_connected)
        event.listen(made, "begin", _sqlite_begins)
        return made
    milliseconds = f"-c lock_timeout={int(1000 * busy_s)} -c statement_timeout={1000 * STATEMENT_S}"
    arguments = {"connect_timeout": CONNECT_S, "options": milliseconds, "application_name": "raycd"}
    return create_engine(url, pool_pre_ping=True, connect_args=arguments)


def writing(of: Engine) -> Engine:
    """The same connections, for transactions that write."""
    return of.execution_options(**{_WRITES: True})


def _sqlite_connected(connection: Any, record: object) -> None:
    # Python's driver would begin transactions by itself, not all of them, and none for tables; `_sqlite_begins` does.
    connection.isolation_level = None
    # Readers go on beside the one writer. FULL: what was committed survives a power cut, too.
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")


def _sqlite_begins(connection: Connection) -> None:
    # A transaction that reads first and then writes could not wait for another writer: it takes the lock at once.
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _shown(url: str) -> str:
    return without_passwords(url)
