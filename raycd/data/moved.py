"""Where the pictures of a run are after the run was copied or moved.

A bundle's gallery names pictures where they were when it was written, and so does the gallery
database that was filled from it. The metadata of gallery.parquet keeps the folder of the run at
that time: what was inside it is looked for in the folder that holds the bundle today; what was
outside and is gone, at the same relative path from there (a data set that moved with the run).
"""

from __future__ import annotations

import os.path
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from raycd.data.folder import is_local

# Key of the metadata of gallery.parquet: the run's folder or URI, as it was when that was written
RUN = b"run"
GALLERY = "gallery.parquet"


@dataclass(frozen=True)
class Move:
    """The move of a run from one folder to another.

    There is none where `before` is empty (older bundles) or both folders are the same.
    """

    before: str = ""
    now: str = ""

    @classmethod
    def of(cls, bundle: Path) -> Move:
        """Return how the run of a bundle was moved; no move where the bundle cannot be read."""
        try:
            metadata = pq.read_schema(bundle / GALLERY).metadata or {}
        except (OSError, pa.ArrowException):
            return cls()
        return cls(metadata.get(RUN, b"").decode(errors="replace"), os.path.abspath(bundle.parent))

    def locate(self, path: str | None) -> str | None:
        """Return the path or URI that a picture has today."""
        return self.locate_all([path])[0]

    def locate_all(self, paths: Iterable[str | None]) -> list[str | None]:
        """Return the paths or URIs that pictures have today; a folder of theirs is tried once."""
        if not self.before or self.before == self.now:
            return list(paths)
        folder_now = cache(self._folder)
        split = (path if path is None else posixpath.split(path) for path in paths)
        return [
            None if parts is None else posixpath.join(folder_now(parts[0]), parts[1])
            for parts in split
        ]

    def _folder(self, folder: str) -> str:
        if folder == self.before or folder.startswith(f"{self.before}/"):
            moved = self.now + folder[len(self.before) :]
        elif (
            is_local(self.before)
            and is_local(folder)
            and os.path.isabs(folder)
            and not os.path.isdir(folder)
        ):
            moved = os.path.normpath(os.path.join(self.now, os.path.relpath(folder, self.before)))
        else:
            return folder
        return moved if os.path.isdir(moved) else folder
