"""Temporary folders that go with their process, even where it is killed: the next process removes
what is left.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

PREFIX = "raycd-scratch-"


def new_folder() -> Path:
    """Return an empty folder that stays until this process ends."""
    made, _ = _locked_folder()  # the lock ends with the process
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


@contextmanager
def folder() -> Iterator[Path]:
    """Give an empty folder that is removed at the end of the block."""
    made, lock = _locked_folder()
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(lock)


def _locked_folder() -> tuple[Path, int]:
    """Make a folder, and take the lock that tells other processes that this one lives."""
    _remove_abandoned()
    while True:
        made = Path(tempfile.mkdtemp(prefix=PREFIX))
        with suppress(
            FileNotFoundError
        ):  # another process took it for an abandoned one before it had its lock
            lock = os.open(made, os.O_RDONLY)
            with suppress(
                OSError
            ):  # a file system without locks: nobody gets this lock, nobody removes the folder
                fcntl.flock(lock, fcntl.LOCK_EX)
            if made.exists():
                return made, lock
            os.close(lock)


@cache
def _remove_abandoned() -> None:
    """Remove, once a process, the folders whose processes were killed: nobody holds their locks."""
    for found in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # another user's, gone by now, or its process lives
            lock = os.open(found, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(found, ignore_errors=True)
            finally:
                os.close(lock)
