"""Parquet files whose bytes are damaged: neither a disk nor a store is to blame for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from raycd.errors import DataError
from raycd.redact import without_passwords


@contextmanager
def told(what: str, do: str) -> Iterator[None]:
    """Raise DataError, which says `what`, where Arrow finds damage inside of the block."""
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        # Of damage in a footer or a page Arrow makes a plain OSError, which has no number
        damage = not isinstance(error, OSError) or (type(error) is OSError and error.errno is None)
        if not damage and not isinstance(error, IsADirectoryError):
            raise
        raise DataError(what, got=without_passwords(str(error)), do=do) from error
