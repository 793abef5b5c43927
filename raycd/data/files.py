"""The state of a data set's image files: a run notices what was added, replaced, changed or lost.

No file is read. A local file costs one `stat`. A store is asked for one listing of a folder with
many of the images (S3: one request for a thousand files), and for each file of the other folders
(HTTP has no listings: a HEAD for each image), ASKED requests at a time.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import fsspec

from raycd import stores
from raycd.data import parts
from raycd.data.folder import is_local

ASKED = 32  # requests to stores at the same time
FEW = 8  # images of a folder that are asked for one by one: it may hold millions of other files
_NAMES = (
    "ETag",
    "etag",
    "md5Hash",
    "CRC",
    "blob_id",
)  # what stores call the hash of a file's content
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "modified", "created")

State = list[int | str]
"""Size, and what changes with the content: modification time, or the etag of a store."""


def states(paths: Iterable[str | None], *, times: bool = True) -> list[State | None]:
    """Return the state of each file, None where it is absent; without `times`, its size alone.

    Raises DataError where a store refuses or does not answer (see `stores.ask`).
    """
    every = [path if path is None else parts.file_of(path) for path in paths]
    far = _in_stores(
        dict.fromkeys(path for path in every if path is not None and not is_local(path)), times
    )
    near = {
        path: _local(path, times)
        for path in dict.fromkeys(every)
        if path is not None and path not in far
    }
    return [None if path is None else far[path] if path in far else near[path] for path in every]


def _local(path: str, times: bool) -> State | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL in it
        return None
    return [found.st_size, found.st_mtime_ns] if times else [found.st_size]


def _in_stores(uris: Iterable[str], times: bool) -> dict[str, State | None]:
    folders: dict[str, list[str]] = {}
    for uri in uris:
        # zip://inner::s3://bucket/a.zip: the folder is one inside the archive
        inner, *outer = uri.split("::")
        folders.setdefault("::".join([posixpath.dirname(inner), *outer]), []).append(uri)
    questions = [
        some
        for folder, inside in folders.items()
        for some in ([inside] if _is_listed(folder, inside) else [[uri] for uri in inside])
    ]
    found: dict[str, State | None] = {}
    with ThreadPoolExecutor(ASKED) as threads:
        ask = partial(_asked, times=times)
        for some, states in zip(questions, threads.map(ask, questions), strict=True):
            found |= dict(zip(some, states, strict=True))
    return found


def _asked(uris: Sequence[str], times: bool) -> list[State | None]:
    return _listed(uris, times) if len(uris) > 1 else [_one(uris[0], times)]


def _is_listed(folder: str, inside: Sequence[str]) -> bool:
    return len(inside) > FEW and not folder.startswith(("http://", "https://"))


def _one(uri: str, times: bool) -> State | None:
    def info() -> Mapping[str, Any]:
        store, path = fsspec.url_to_fs(uri)
        store.invalidate_cache()
        found: Mapping[str, Any] = store.info(path)
        return found

    try:
        return _state(stores.ask(uri, info), times and not uri.startswith(("http://", "https://")))
    except FileNotFoundError:
        return None


def _listed(uris: Sequence[str], times: bool) -> list[State | None]:
    """Return the states of files of one folder."""
    inner, *outer = uris[0].split("::")
    folder = "::".join([posixpath.dirname(inner), *outer])

    def listing() -> dict[str, Mapping[str, Any]]:
        store, path = fsspec.url_to_fs(folder)
        store.invalidate_cache()
        return {
            posixpath.basename(entry["name"].rstrip("/")): entry
            for entry in store.ls(path, detail=True)
        }

    try:
        there = stores.ask(folder, listing)
    except FileNotFoundError:
        there = {}
    entries = [there.get(posixpath.basename(uri.split("::")[0])) for uri in uris]
    return [None if entry is None else _state(entry, times) for entry in entries]


def _state(entry: Mapping[str, Any], times: bool) -> State:
    """Return a state from a store's entry.

    HTTP servers behind one name often differ in etags and times, so `times` is False for them.
    """
    size = entry.get("size")
    inside = (
        next((entry[name] for name in (*_NAMES, *_TIMES) if entry.get(name)), "") if times else ""
    )
    return [-1 if size is None else int(size), str(inside)]
