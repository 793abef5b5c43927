"""The owner of a SQLite file: one service at a time, all of its replicas and nobody else.

`<file>.lock` has two lines: the name of the service, and which file it opened. A replica that
starts later, maybe in place of a dead one, must find the same file: what the service has
acknowledged is there and nowhere else.

`durable.file_lock` does not serve here: the replicas of a service share the lock, and it has to
outlive a block.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from raycd.durable import PRIVATE_FILE
from raycd.errors import GalleryError
from raycd.gallery_db.watch import Identity, replaced

_PATIENCE_S = 2.0  # while another process writes its name into the file


def hold(file: Path, owner: str) -> int:
    """Hold the file for `owner` until this process ends or closes the returned descriptor.

    A process that finds `<file>.lock` free writes its owner there; others of that owner share it.

    Raises:
        GalleryError: The file belongs to another owner.
    """
    lock = lock_of(file)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, PRIVATE_FILE)
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
        # The file has our name and yet no lock to share for a moment only, while another process
        # turns its exclusive lock into a shared one.
        if found != owner and time.monotonic() > until:
            os.close(descriptor)
            raise GalleryError(
                f"another service has the gallery {file}",
                "in_use",
                got=found or "a service that has just begun",
                expected="one service for a SQLite file",
                do="stop the other one, give this one a --gallery of its own, "
                "or let both use PostgreSQL",
            )
        time.sleep(0.02)


def check(file: Path, descriptor: int) -> None:
    """Raise GalleryError (replaced) where this service opened another file there before."""
    known = _lines(descriptor)[1]
    try:
        found = _identity(file)
    except FileNotFoundError:
        found = "no file"
    if known and found != known:
        raise replaced(file, f"{found} (device:inode), where this service has opened {known}")


def note(file: Path, descriptor: int) -> None:
    """Write down which file this service has opened. Every replica writes the same."""
    os.pwrite(descriptor, f"{_lines(descriptor)[0]}\n{_identity(file)}\n".encode(), 0)


def lock_of(file: Path) -> Path:
    """Return the file that has the owner of a database."""
    return file.with_name(f"{file.name}.lock")


def _identity(file: Path) -> str:
    return "{}:{}".format(*Identity.of(file))


def _lines(descriptor: int) -> tuple[str, str]:
    """Return the owner's name, and which file it opened; empty where not written yet."""
    name, _, identity = os.pread(descriptor, 1000, 0).decode(errors="replace").partition("\n")
    return name.strip(), identity.strip()


def _take(descriptor: int, owner: str) -> bool:
    """Write the owner where nobody holds the lock; share the lock where the owner is the same."""
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
