"""Parquet files whose bytes are damaged: neither a disk nor a store is to blame for them."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from raycd.errors import DataError
from raycd.redact import without_passwords

_OF_THE_SYSTEM = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


@contextmanager
def table(what: str, do: str) -> Iterator[None]:
    """Raise DataError, which says `what`, also where a table is absent or its disk fails.

    What the system forbids or has no room for is told by whoever runs the program.
    """
    try:
        with told(what, do):
            yield
    except OSError as error:
        if error.errno in _OF_THE_SYSTEM:
            raise
        got = without_passwords(str(error))
        raise DataError(what, got=got, do="check the name, and the disk that it is on") from error


@contextmanager
def told(what: str, do: str) -> Iterator[None]:
    """Raise DataError, which says `what`, where Arrow finds damage inside of the block."""
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        # Of damage in a footer or a page Arrow makes a plain OSError, which has no number
        if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
            raise
        raise DataError(what, got=without_passwords(str(error)), do=do) from error
