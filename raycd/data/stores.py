"""Stores that data sets are in (any fsspec URI), with retries.

A store that is busy or does not answer says nothing about a file. It is asked again, and in the end
that is an error that names the store: only what a store says is absent counts as absent.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import TypeVar
from urllib.parse import urlsplit

import fsspec

from raycd.errors import DataError

WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before each further try, unless Retry-After says more
LONGEST_WAIT = 60.0  # seconds, however much Retry-After says

_ABSENT = (404, 410)
_REFUSED = (401, 403, 407)
_PASSING = (408, 425, 429)  # and all from 500 on but 501
_LASTING = (ImportError, ValueError, TypeError, NotImplementedError)

Answer = TypeVar("Answer")


def read(uri: str, *, patient: bool = True) -> bytes:
    """Return the bytes of a file.

    Raises FileNotFoundError where there is none, DataError as `ask` does.
    """

    def whole() -> bytes:
        store, path = fsspec.url_to_fs(uri)
        # Not fsspec.open, which takes every failure of HTTP for an absent file
        return bytes(store.cat_file(path))

    return ask(uri, whole, patient=patient)


def ask(uri: str, question: Callable[[], Answer], *, patient: bool = True) -> Answer:
    """Return what `question()` returns, retried while the store of `uri` is busy or unreachable.

    The waits double from half a second; Retry-After is honoured up to LONGEST_WAIT. There is a
    single try unless `patient`.

    Raises:
        FileNotFoundError: The store says that the file is absent (404, 410), or is a folder.
        DataError: The store refuses (credentials), does not answer, or cannot be asked at all.
    """
    waits = WAITS if patient else ()
    for made in range(len(waits) + 1):
        try:
            return question()
        except Exception as failure:  # OSError, ImportError, those of botocore and aiohttp, ...
            error = _cause(failure)
            status = _status(error)
            absent = isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError)
            if absent or status in _ABSENT:
                raise FileNotFoundError(f"{store_of(uri)} has no such file: {uri}") from error
            if made == len(waits) or not _may_pass(error, status):
                raise _failed(uri, error, status, tries=made + 1) from error
            wait = max(waits[made], _retry_after(error)) + random.uniform(0, waits[made] / 4)
            time.sleep(min(wait, LONGEST_WAIT))
    raise AssertionError("the last try returns or raises")


def store_of(uri: str) -> str:
    """Return the store of a URI without a password: `https://example.org`, `s3://bucket`."""
    link = next((link for link in reversed(uri.split("::")) if "://" in link), uri)
    try:
        parts = urlsplit(link)
        host = parts.hostname or parts.netloc.rpartition("@")[2]
        port = f":{parts.port}" if parts.port else ""
    except ValueError:  # an invalid port, or an unbalanced bracket
        return f"{link.partition('://')[0]}://"
    return f"{parts.scheme}://{host}{port}"


def _cause(error: Exception) -> BaseException:
    """Return the store's own error: fsspec's HTTP wraps every failure in a FileNotFoundError."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or cause is None:
        return error
    spoke = (
        _status(cause) is not None
        or isinstance(cause, OSError)
        or type(cause).__module__.startswith("aiohttp")
    )
    return cause if spoke else error


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that an error of aiohttp, gcsfs, adlfs or botocore carries."""
    for name in ("status", "status_code", "code"):
        found = getattr(error, name, None)
        if isinstance(found, int) and 100 <= found < 600:
            return found
    response = getattr(error, "response", None)
    found = (
        response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if isinstance(response, dict)
        else None
    )
    return found if isinstance(found, int) else None


def _refuses(error: BaseException, status: int | None) -> bool:
    """Return whether it is about credentials; botocore has errors of its own for absent ones."""
    return (
        status in _REFUSED
        or isinstance(error, PermissionError)
        or "Credentials" in type(error).__name__
    )


def _may_pass(error: BaseException, status: int | None) -> bool:
    if status is not None:
        return status in _PASSING or (status >= 500 and status != 501)
    return not isinstance(error, _LASTING) and not _refuses(error, status)


def _retry_after(error: BaseException) -> float:
    """Return the seconds of Retry-After (a number or a date); 0 where it is absent."""
    headers = getattr(error, "headers", None)
    value = "" if headers is None else str(headers.get("Retry-After", ""))
    with suppress(ValueError):
        return max(0.0, float(value))
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0


def _failed(uri: str, error: BaseException, status: int | None, *, tries: int) -> DataError:
    store, got = store_of(uri), f"{type(error).__name__}: {error}"
    if _refuses(error, status):
        return DataError(
            f"{store} refuses to give {uri}",
            got=got,
            expected="an answer, or 404 where the file is absent",
            do="check its credentials; S3 also refuses absent files "
            "where you may not list the bucket",
        )
    if _may_pass(error, status):
        return DataError(
            f"{store} does not answer",
            got=f"{got}, for {uri}" + (f" ({tries} tries)" if tries > 1 else ""),
            do="check that the store is up and reachable from here, "
            "then run the same command again to continue",
        )
    return DataError(
        f"reading {uri} failed",
        got=got,
        do="check the URI, and that the fsspec package of its protocol is installed "
        "(s3fs, gcsfs, adlfs, ...)",
    )
