"""Bundles that were fetched, from a store or a registry: copies on this machine, with a bound.

The copies that were used last stay, KEPT of them, and those that a process uses. A process that has
ended, however it ended, uses none.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from raycd import bundle, stores
from raycd.bundle.manifest import MANIFEST
from raycd.durable import WRITING, create_folder_once, remove_folder
from raycd.errors import WeightsError
from raycd.redact import without_passwords
from raycd.run import local_copy, open_uri

CACHE = "~/.cache/raycd/bundles"
KEPT = 4

_used: dict[Path, int] = {}
"""Folder -> open descriptor with a shared lock, of this process until it ends."""


def fetch(uri: str, cache: str = CACHE) -> Path:
    """Return a local copy of a bundle on a store; each bundle is copied once.

    Raises:
        WeightsError: There is none, or it is damaged.
        DataError: The store refuses or does not answer.
    """
    uri = uri.rstrip("/")
    try:
        manifest = stores.read(f"{uri}/{MANIFEST}")
    except FileNotFoundError as error:
        raise WeightsError(
            f"there is no bundle at {without_passwords(uri)}",
            expected=f"a folder with a {MANIFEST}, as training writes it to <runs>/<name>/bundle",
            do="check the URI, or train first",
        ) from error
    file_system, path = open_uri(uri)
    if isinstance(file_system, LocalFileSystem):  # file://...
        return Path(path)
    name = hashlib.sha256(manifest).hexdigest()[:32]  # it has the hashes of all other files
    return keep(f"stores/{name}", partial(_copy, uri, manifest), cache)


def _copy(uri: str, manifest: bytes, folder: Path) -> None:
    local_copy(uri, folder)
    if (folder / MANIFEST).read_bytes() != manifest:
        raise WeightsError(
            f"the bundle {without_passwords(uri)} was replaced while it was copied",
            do="run the same command again",
        )
    bundle.verify(folder)


def keep(name: str, fill: Callable[[Path], object], cache: str = CACHE) -> Path:
    """Return the folder `name` (two levels) of the cache, made by `fill(new folder)` where absent.

    It stays while this process lives. Others go that nobody uses, but for KEPT.
    """
    root = Path(cache).expanduser()
    folder = root / name

    def made(fresh: Path) -> None:
        # Of killed processes: this one has the lock
        for left in folder.parent.glob(f".*{WRITING}"):
            if left != fresh:
                shutil.rmtree(left, ignore_errors=True)
        fill(fresh)

    while folder not in _used:
        create_folder_once(folder, made)
        with suppress(FileNotFoundError):  # another process took it for one that nobody uses
            descriptor = os.open(folder, os.O_RDONLY)
            with suppress(OSError):  # a file system without locks, where nothing is removed either
                fcntl.flock(descriptor, fcntl.LOCK_SH)
            if folder.exists() and os.path.samestat(os.fstat(descriptor), folder.stat()):
                _used[folder] = descriptor
            else:
                os.close(descriptor)
    os.utime(folder)
    _remove_unused(root)
    return folder


def _remove_unused(root: Path) -> None:
    used: dict[Path, float] = {}
    for path in root.glob("*/*"):
        with suppress(FileNotFoundError):  # another process removes it
            if path.is_dir() and not path.name.startswith("."):
                used[path] = path.stat().st_mtime
    for folder in sorted(used, key=used.__getitem__, reverse=True)[KEPT:]:
        with suppress(OSError):  # used by another process, or gone by now
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_folder(folder)
            finally:
                os.close(descriptor)
