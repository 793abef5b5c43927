"""A SQLite file belongs to one service at a time: all replicas of it, and nobody else's."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from raycd.errors import CatalogueError

_PATIENCE_S = 2.0  # while another process writes its name down


def hold(file: Path, owner: str) -> int:
    """Hold the file for `owner` until this process ends, however it ends, or closes the descriptor that is returned.

    Whoever finds `<file>.lock` free writes its name there; whoever finds its own name joins in.

    Raises:
        CatalogueError: It belongs to another one.
    """
    place = file.with_name(f"{file.name}.lock")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(place, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise CatalogueError(
            "the gallery's folder cannot be written",
            "read_only",
            got=error.strerror,
            do="give the service the right to write there, or name another database",
        ) from error
    until = time.monotonic() + _PATIENCE_S
    while True:
        if _take(descriptor, owner):
            return descriptor
        found = os.pread(descriptor, 1000, 0).decode(errors="replace").strip()
        # A name is there without its lock for a moment only: while a lock is made a shared one.
        if found != owner and time.monotonic() > until:
            os.close(descriptor)
            raise CatalogueError(
                f"another service has the gallery {file}",
                "in_use",
                got=found or "a service that has just begun",
                expected="one service for a SQLite file",
                do="stop the other one, give this one a --gallery of its own, or let both use PostgreSQL",
            )
        time.sleep(0.02)


def _take(descriptor: int, owner: str) -> bool:
    """Write the name down where nobody holds the file; join where the name is there already."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pass
    else:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, owner.encode(), 0)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    if os.pread(descriptor, 1000, 0).decode(errors="replace").strip() == owner:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False
