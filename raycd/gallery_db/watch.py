"""A watch that the open SQLite file is still the one that others would open at its path.

SQLite in WAL mode goes on without an error in a file that was removed, replaced or truncated, and
what it commits there is lost. So every transaction first checks the path, and one that writes
checks it again after the commit.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, event

from raycd.errors import GalleryError
from raycd.gallery_db import faults

_BESIDE = ("-wal", "-shm")  # parts of the database: without the log, the last commits are lost
_WAL_MAGIC = (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")
_INFO = "raycd_files"  # where a pooled connection keeps the files that it has opened


class Identity(NamedTuple):
    """What tells a file from others, whatever their names."""

    device: int
    inode: int

    @classmethod
    def of(cls, path: str | Path) -> Identity:
        """Return the identity of the file at a path. Raises OSError where there is none."""
        found = os.stat(path)
        return cls(found.st_dev, found.st_ino)


class FileWatch:
    """A watch of all connections of an engine to one file.

    Its own descriptor stays open as long as they do: POSIX releases all locks of a process on a
    file when it closes any descriptor of it. So a process may watch a file only once.
    """

    def __init__(self, engine: Engine, file: Path) -> None:
        self._file = file
        self._descriptor: int | None = None
        self._size, self._changes = 0, 0
        self._lock = threading.Lock()
        event.listen(engine, "do_connect", self._connecting)
        event.listen(engine, "connect", self._connected)
        event.listen(engine, "begin", self.check, insert=True)

    def close(self) -> None:
        """Close the file, after all connections."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def check(self, connection: Connection) -> None:
        """Raise GalleryError (replaced) where other files than this connection's are there."""
        self._look(connection.info[_INFO])

    def _connecting(self, *_: object) -> None:
        if self._descriptor is not None:
            self._look({})  # SQLite would make a new file where the old one has gone

    def _connected(self, connection: Any, record: Any) -> None:
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()  # opens the log
        with self._lock:
            if self._descriptor is None:
                self._descriptor = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC)
        paths = [f"{self._file}{ending}" for ending in _BESIDE]
        record.info[_INFO] = {path: Identity.of(path) for path in paths}
        self._look(record.info[_INFO])

    def _look(self, beside: dict[str, Identity]) -> None:
        assert self._descriptor is not None, "opened with the first connection"
        try:
            opened = os.fstat(self._descriptor)
            if Identity.of(self._file) != (opened.st_dev, opened.st_ino):
                raise replaced(self._file, "another file is there")
            for path, known in beside.items():
                if Identity.of(path) != known:
                    raise replaced(self._file, f"another {Path(path).name} is there")
            with self._lock:
                self._look_inside(self._descriptor)
            if beside and not _is_log(f"{self._file}-wal"):
                raise replaced(self._file, "its -wal was emptied or overwritten")
        except FileNotFoundError as error:
            raise replaced(self._file, f"{Path(error.filename).name} is not there") from error
        except OSError as error:
            reason = faults.of_file(error)
            raise GalleryError(
                f"the gallery's file {self._file} cannot be read",
                reason,
                got=error.strerror,
                do=faults.DO[reason],
            ) from error

    def _look_inside(self, descriptor: int) -> None:
        """Raise where the file did more than grow, by its header as of the last checkpoint."""
        size, header = os.fstat(descriptor).st_size, os.pread(descriptor, 100, 0)
        if header[:16] != b"SQLite format 3\0" or header[18:20] != b"\2\2":  # 2: with a log
            raise replaced(self._file, "it was emptied or overwritten")
        # https://www.sqlite.org/fileformat.html: page size (1 means 65536), change counter, pages.
        page, changes, pages = (
            int.from_bytes(header[start:end]) for start, end in ((16, 18), (24, 28), (28, 32))
        )
        # Only VACUUM makes the file smaller, and then the header has fewer pages. While the file
        # grows, the header may be ahead of it.
        whole = pages * (page if page > 1 else 65536)
        if changes < self._changes or (size < self._size and size < whole):
            raise replaced(self._file, "it was cut off or overwritten")
        self._size, self._changes = size, changes


def replaced(file: Path, got: str) -> GalleryError:
    """Return the error of a file that is not the one that was opened."""
    what = (
        f"the gallery's file {file} was removed, replaced or changed by something else "
        "while it was open"
    )
    return GalleryError(what, "replaced", got=got, do=faults.DO["replaced"])


def _is_log(path: str) -> bool:
    """Return whether a file begins as SQLite's log does, or is still empty.

    SQLite has no locks on its log, so opening and closing it here releases none.
    """
    with open(path, "rb") as file:
        return file.read(4) in (b"", *_WAL_MAGIC)
