"""Temporary folders that end with their process, or, if it is killed, with the next one."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from filelock import lock_descriptor

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
    """Make a folder, and take the lock that tells other processes that this one lives.

    The lock is that of the folder itself (`durable.file_lock` would need a file that is removed
    with the folder), and it has to outlive the function.
    """
    _remove_abandoned()
    while True:
        # Without links: that of a Ray of ours (`local_ray`) is gone before this process
        made = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
        # Another process may take the folder for an abandoned one before it has its lock.
        with suppress(FileNotFoundError):
            lock = os.open(made, os.O_RDONLY)
            # A file system without locks: nobody gets this lock, so nobody removes the folder.
            with suppress(OSError):
                lock_descriptor(lock)
            if made.exists():
                return made, lock
            os.close(lock)


@cache
def _remove_abandoned() -> None:
    """Remove, once a process, the folders of killed processes: nobody holds their locks."""
    for found in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # another user's, or gone by now, or a file system without locks
            lock = os.open(found, os.O_RDONLY)
            try:
                if lock_descriptor(lock, blocking=False):
                    shutil.rmtree(found, ignore_errors=True)
            finally:
                os.close(lock)
