"""A SQLite file belongs to one service at a time: all replicas of it, and nobody else's.

`<file>.lock` has two lines: the name of the service, and which file it opened. A replica that
starts later, maybe in the place of one that has died, must find the same file: what the service has
acknowledged is there and nowhere else.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from raycd.durable import PRIVATE_FILE
from raycd.errors import GalleryError
from raycd.gallery_db.watch import Identity, replaced

_PATIENCE_S = 2.0  # while another process writes its name down


def hold(file: Path, owner: str) -> int:
    """Hold the file for `owner` until this process ends, however it ends, or closes the descriptor
    that is returned.

    Whoever finds `<file>.lock` free writes its name there; whoever finds its own name joins in.

    Raises:
        GalleryError: It belongs to another one.
    """
    place = lock_of(file)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(place, os.O_RDWR | os.O_CREAT, PRIVATE_FILE)
    except OSError as error:
        raise GalleryError(
            "the gallery's folder cannot be written",
            "read_only",
            got=error.strerror,
            do="give the service the right to write there, or name another database",
        ) from error
    until = time.monotonic() + _PATIENCE_S
    while True:
        if _take(descriptor, owner):
            return descriptor
        found = _lines(descriptor)[0]
        # A name is there without its lock for a moment only: while a lock is made a shared one.
        if found != owner and time.monotonic() > until:
            os.close(descriptor)
            raise GalleryError(
                f"another service has the gallery {file}",
                "in_use",
                got=found or "a service that has just begun",
                expected="one service for a SQLite file",
                do="stop the other one, give this one a --gallery of its own, or let both use PostgreSQL",
            )
        time.sleep(0.02)


def check(file: Path, descriptor: int) -> None:
    """Raises GalleryError (replaced) where this service has opened another file there before, or
    it has gone.
    """
    known = _lines(descriptor)[1]
    try:
        found = _written(file)
    except FileNotFoundError:
        found = "no file"
    if known and found != known:
        raise replaced(file, f"{found} (device:inode), where this service has opened {known}")


def note(file: Path, descriptor: int) -> None:
    """Write down which file this service has opened. Whoever joins in writes the same."""
    os.pwrite(descriptor, f"{_lines(descriptor)[0]}\n{_written(file)}\n".encode(), 0)


def lock_of(file: Path) -> Path:
    """Where a database's owner is written down."""
    return file.with_name(f"{file.name}.lock")


def _written(file: Path) -> str:
    return "{}:{}".format(*Identity.of(file))


def _lines(descriptor: int) -> tuple[str, str]:
    """The owner's name, and which file it opened; empty: not written yet."""
    name, _, identity = os.pread(descriptor, 1000, 0).decode(errors="replace").partition("\n")
    return name.strip(), identity.strip()


def _take(descriptor: int, owner: str) -> bool:
    """Write the name down where nobody holds the file; join where the name is there already."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pass
    else:
        if _lines(descriptor)[0] != owner:  # else all replicas of the same service have died
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, owner.encode(), 0)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    if _lines(descriptor)[0] == owner:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False
