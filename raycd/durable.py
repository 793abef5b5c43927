"""A folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PRIVATE_FILE, PRIVATE_FOLDER = (
    0o600,
    0o700,
)  # rights of what belongs to the service's own user alone


@contextmanager
def replacing(folder: Path, *, mode: int = 0o777) -> Iterator[Path]:
    """Gives a new, empty folder beside `folder`, on the same disk; without an error it takes the
    name of `folder`.

    Everything is on the disk before the name changes, and an older `folder` stays readable until
    then: it is moved aside, and back where the change fails. After an error in the block nothing
    has changed. `mode` are its rights.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}.writing")
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.replaced")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode)
    try:
        yield fresh
        _sync_tree(fresh)
        if folder.exists():
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
        try:
            fresh.rename(folder)
        except BaseException:
            if aside.exists():
                aside.rename(folder)
            raise
        sync(folder.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(aside, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    for place, _, files in os.walk(folder):
        for name in files:
            sync(Path(place) / name)
        sync(Path(place))


def sync(path: Path) -> None:
    """Wait until a file's bytes or a folder's names are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
