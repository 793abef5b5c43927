"""Stores that data sets and runs are in (any fsspec URI), with retries.

A store that is busy or does not answer says nothing about a file. It is asked again, and in the end
that is an error that names the store: only what a store says is absent counts as absent.
"""

from __future__ import annotations

import errno
import posixpath
import random
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import fsspec
from fsspec import AbstractFileSystem

from raycd import retry_after
from raycd.errors import DataError, RaycdError, brief
from raycd.redact import without_passwords

WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before each further try, unless Retry-After says more
LONGEST_WAIT = 60.0  # seconds, however much Retry-After says
PATIENCE = 120.0  # seconds after which there is no further try: a client's own tries take time, too

Doing = Literal["reading", "writing"]

_LIBRARIES = ("aiobotocore", "aiohttp", "botocore", "fsspec", "gcsfs", "adlfs", "s3fs")
_ABSENT = (404, 410)
_TAKEN = (409, 412)  # to a conditional put: another one was first, or is at it
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


def opened(uri: str) -> Any:
    """Open a file to read it; of a store, each piece is asked for with patience (`ask`)."""
    if "://" not in uri:
        return open(uri, "rb")

    def file() -> Any:
        store, path = fsspec.url_to_fs(uri)
        return store.open(path, "rb")

    found = ask(uri, file)
    cache = getattr(found, "cache", None)  # of fsspec's buffered files: local ones have none
    fetch = getattr(cache, "fetcher", None)
    if cache is not None and fetch is not None:
        cache.fetcher = lambda start, end: ask(uri, partial(fetch, start, end))
    return found


def is_bucket(store: AbstractFileSystem) -> bool:
    """Return whether a store has buckets and no folders, and a file there or not, never half."""
    protocols = store.protocol
    names = {protocols} if isinstance(protocols, str) else set(protocols)
    return bool(names & {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"})


def make_folder(store: AbstractFileSystem, path: str) -> None:
    """Make a folder, where there are any: some stores would make a mistyped bucket."""
    if not is_bucket(store):
        store.makedirs(path, exist_ok=True)


def names(
    uri: str, store: AbstractFileSystem, path: str, *, kind: type[RaycdError] = DataError
) -> list[str]:
    """Return the sorted names in the folder `path` of the store of `uri`; none where it is absent
    or a file.

    Raises as `ask`.
    """

    def listed() -> list[str]:
        # Not every store's ls takes `refresh`; the Hugging Face hub is asked for this, too
        store.invalidate_cache(path)
        return [str(each).rstrip("/") for each in store.ls(path, detail=False)]

    try:
        found = ask(uri, listed, kind=kind)
    except (FileNotFoundError, NotADirectoryError):
        return []
    # Most list a file as itself, and S3 a folder with what marks it
    return sorted(posixpath.basename(each) for each in found if each != path.rstrip("/"))


def ask(
    uri: str,
    question: Callable[[], Answer],
    *,
    doing: Doing = "reading",
    patient: bool = True,
    kind: type[RaycdError] = DataError,
) -> Answer:
    """Return what `question()` returns, retried while the store of `uri` is busy or unreachable.

    Of a local path it is asked once, and what it raises is raised as it is.

    The waits double from half a second; Retry-After is honoured up to LONGEST_WAIT. After PATIENCE
    there is no other try, and a single one unless `patient`. A question that writes may be asked
    twice, so twice is as once.

    Raises:
        FileNotFoundError: The store says that the file is absent (404, 410), or is a folder.
        FileExistsError: It says that there is a file where none should be (409, 412).
        RaycdError: Of this `kind`: the store refuses (credentials), has no such bucket, does not
            answer, or cannot be asked at all.
        OSError: The disk of this machine is full, or a path on it may not be read or written.
    """
    if "://" not in uri:
        return question()
    waits, began = WAITS if patient else (), time.monotonic()
    for made in range(len(waits) + 1):
        try:
            return question()
        except RaycdError:
            raise
        except Exception as failure:  # OSError, ImportError, those of botocore and aiohttp, ...
            if _is_of_this_machine(failure):
                raise
            error = _cause(failure)
            status = _status(error)
            if isinstance(failure, FileExistsError) or status in _TAKEN:
                raise FileExistsError(f"{store_of(uri)} has such a file already") from error
            absent = isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError)
            if (absent or status in _ABSENT) and not _no_bucket(failure):
                shown = without_passwords(uri)
                raise FileNotFoundError(f"{store_of(uri)} has no such file: {shown}") from error
            over = made == len(waits) or time.monotonic() > began + PATIENCE
            if over or not _may_pass(error, status) or _no_bucket(failure):
                raise kind(**_failed(uri, error, status, doing, tries=made + 1)) from error
            wait = max(waits[made], _retry_after(error)) + random.uniform(0, waits[made] / 4)
            time.sleep(min(wait, LONGEST_WAIT))
    raise AssertionError("the last try returns or raises")


def translate_error(
    uri: str, errors: Iterable[BaseException], kind: type[RaycdError]
) -> RaycdError | None:
    """Return the first of these errors that a store has raised as one of ours; None: none has.

    For libraries that ask a store by themselves, such as Ray Train.
    """
    for error in errors:
        cause = _cause(error) if isinstance(error, Exception) else error
        library = type(cause).__module__.partition(".")[0]
        local = _is_of_this_machine(cause)
        if library in _LIBRARIES or (isinstance(cause, OSError) and not local):
            return kind(**_failed(uri, cause, _status(cause), "writing", tries=1))
    return None


def cannot(error: RaycdError) -> bool:
    """Return whether an error of `ask` says that the store does not know such a question."""
    cause = error.__cause__
    return isinstance(cause, TypeError | NotImplementedError) or (
        cause is not None and _status(cause) == 501
    )


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
    """Return the store's own error: fsspec's HTTP wraps every failure in a FileNotFoundError, and
    s3fs what it has no Python error for in an OSError.
    """
    cause = error.__cause__
    if cause is None or not (isinstance(error, FileNotFoundError) or type(error) is OSError):
        return error
    spoke = (
        _status(cause) is not None
        or isinstance(cause, OSError)
        or type(cause).__module__.startswith("aiohttp")
    )
    return cause if spoke else error


def _is_of_this_machine(error: BaseException) -> bool:
    """Return whether the disk here is full, or a path on it may not be read or written.

    Where a store refuses, its library's error names no file.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return getattr(error, "filename", None) is not None
    return number in (errno.ENOSPC, errno.EDQUOT)


def _no_bucket(error: BaseException) -> bool:
    """Return whether it is the bucket that is absent, so that the file could never be there."""
    response = getattr(error.__cause__ or error, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return code == "NoSuchBucket"


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
    """Return the seconds of Retry-After; 0 where it is absent."""
    headers = getattr(error, "headers", None)
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's, in lower case
        headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    found = (
        [] if headers is None else [headers.get(name) for name in ("Retry-After", "retry-after")]
    )
    return retry_after.seconds(next((str(each) for each in found if each), "")) or 0.0


def _failed(
    uri: str, error: BaseException, status: int | None, doing: Doing, *, tries: int
) -> dict[str, str]:
    """Return the parts of the message of an error of ours."""
    store, shown = store_of(uri), without_passwords(uri)
    said = error.__cause__ if _status(error.__cause__ or error) is not None else None
    got = without_passwords(brief(said or error))
    if _no_bucket(error):
        return {
            "what": f"there is no bucket {store}",
            "got": f"{got}, {doing} {shown}",
            "do": "check its name and the store's address (AWS_ENDPOINT_URL), or make the bucket; "
            "then run the same command again",
        }
    if _refuses(error, status):
        return {
            "what": f"{store} refuses to {'give' if doing == 'reading' else 'take'} {shown}",
            "got": got,
            "expected": "an answer, or 404 where the file is absent"
            if doing == "reading"
            else "the right to write there",
            "do": "check its credentials; S3 also refuses absent files "
            "where you may not list the bucket"
            if doing == "reading"
            else "check its credentials and what they may write, "
            "then run the same command again to continue",
        }
    if _may_pass(error, status):
        return {
            "what": f"{store} does not answer",
            "got": f"{got}, {doing} {shown}" + (f" ({tries} tries)" if tries > 1 else ""),
            "do": "check that the store is up and reachable from here, "
            "then run the same command again to continue",
        }
    return {
        "what": f"{doing} {shown} failed",
        "got": got,
        "do": "check the URI, and that the fsspec package of its protocol is installed "
        "(s3fs, gcsfs, adlfs, ...)",
    }
