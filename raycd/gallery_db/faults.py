"""What goes wrong with databases and their files, as GalleryError."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DataError, DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

import raycd.errors
from raycd.errors import GalleryError
from raycd.redact import without_passwords

Reason = GalleryError.Reason

_SQLITE: dict[int, Reason] = {
    sqlite3.SQLITE_BUSY: "locked",
    sqlite3.SQLITE_LOCKED: "locked",
    sqlite3.SQLITE_FULL: "full",
    sqlite3.SQLITE_READONLY: "read_only",
    sqlite3.SQLITE_PERM: "read_only",
    sqlite3.SQLITE_CANTOPEN: "read_only",
    sqlite3.SQLITE_CORRUPT: "damaged",
    sqlite3.SQLITE_NOTADB: "damaged",
    sqlite3.SQLITE_IOERR: "unreachable",
}
_POSTGRESQL: dict[str, Reason] = {
    "25006": "read_only",  # read_only_sql_transaction
    "25P03": "locked",  # idle_in_transaction_session_timeout
    "40001": "locked",  # serialization_failure
    "40P01": "locked",  # deadlock_detected
    "42501": "read_only",  # insufficient_privilege
    "53100": "full",  # disk_full
    "55P03": "locked",  # lock_not_available
    "57014": "locked",  # query_canceled: statement_timeout
    "XX001": "damaged",  # data_corrupted
    "XX002": "damaged",  # index_corrupted
}
_FILES: dict[int, Reason] = {
    errno.ENOSPC: "full",
    errno.EDQUOT: "full",
    errno.EROFS: "read_only",
    errno.EACCES: "read_only",
    errno.EPERM: "read_only",
}
DO: dict[Reason, str] = {
    "unreachable": "see that the database runs and that its address, user and password are right",
    "locked": "wait for the other writer, or end it",
    "full": "make room on the disk",
    "read_only": "give the service the right to write there, or name another database",
    "damaged": "restore a backup, or name another database",
    "replaced": "put back the file that was there; "
    "or stop the service, restore a backup and start it again",
}


@contextmanager
def translate_errors(what: str, url: str) -> Iterator[None]:
    """Turn what SQLAlchemy and the drivers raise into GalleryError, without passwords of `url`."""
    try:
        yield
    except (UnicodeEncodeError, DataError) as error:
        raise raycd.errors.DataError(
            f"{what} failed: a text cannot be stored",
            got=type(error).__name__,
            expected="Unicode text without the character NUL",
        ) from error
    except SQLAlchemyError as error:
        found = reason(error)
        if found is None:
            raise
        said = str(error.orig if isinstance(error, DBAPIError) else error).strip()
        raise GalleryError(
            f"{what} failed: {without_passwords(url)}",
            found,
            got=without_passwords(said.partition("\n")[0]),
            do=DO[found],
        ) from error


def of_file(error: OSError) -> Reason:
    """Return what an error of the file system means to a writer."""
    return _FILES.get(error.errno or 0, "unreachable")


def reason(error: SQLAlchemyError) -> Reason | None:
    """Return the reason of a failure; None for a mistake of ours."""
    if not isinstance(error, DBAPIError):
        return "unreachable" if "timeout" in type(error).__name__.lower() else None
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_IOERR_SHMSIZE:  # the -shm file, the log's index, could not grow
        return "full"
    if code == sqlite3.SQLITE_READONLY_DBMOVED:
        return "replaced"
    if code is not None:
        return _SQLITE.get(code & 0xFF)
    state = getattr(error.orig, "sqlstate", None) or ""
    if state in _POSTGRESQL:
        return _POSTGRESQL[state]
    # Most errors of a server that is gone or not yet there have no state, or one of these classes:
    # connection, authorization, unknown database, resources, operator intervention.
    lost = error.connection_invalidated or not state or state[:2] in ("08", "28", "3D", "53", "57")
    return "unreachable" if lost and isinstance(error, OperationalError | InterfaceError) else None
