"""A gallery that is there already, as jobs open it beside the service: its database and its
pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from raycd.data.moved import Move
from raycd.errors import ConfigError, GalleryError
from raycd.gallery_db import GalleryDatabase, database
from raycd.gallery_db.pictures import SCHEME, Pictures
from raycd.gallery_db.records import Row

NOBODY = ""  # the fingerprint of no encoder: all images are without a feature of it


@dataclass(frozen=True)
class Place:
    """The database and what the service keeps of pictures; None: nobody said where."""

    url: str = field(repr=False)  # with its password, if it has one
    gallery_db: GalleryDatabase
    pictures: Pictures | None
    moved: Move = field(default_factory=Move, kw_only=True)
    """How the run beside whose bundle the database lies was moved."""

    @classmethod
    @contextmanager
    def existing(cls, url: str, root: str = "") -> Iterator[Self]:
        """Open it for the block. `root` of the pictures; empty: beside the SQLite file, as the
        service has it.

        Raises GalleryError where there is none, it cannot be opened, or its schema is not this
        version's.
        """
        file = sqlite_file(url)
        if file is not None and not file.is_file():
            raise GalleryError(
                f"there is no gallery at {file}",
                "unreachable",
                expected="a SQLite file that the service has made, or a postgresql:// URL",
                do="check --gallery",
            )
        root = pictures_root(url, root)
        moved = (
            Move() if file is None else Move.of(file.parent / "bundle")
        )  # where the service puts it by itself
        with GalleryDatabase.open(url, migrate=False) as gallery_db:
            yield cls(url, gallery_db, Pictures(root) if root else None, moved=moved)

    @property
    def file(self) -> Path | None:
        """Of the database; None: it is PostgreSQL's."""
        return sqlite_file(self.url)

    def rows(self) -> Iterator[Row]:
        """All images that are there, without features, in the order of their versions; some at a
        time in memory.
        """
        after = 0
        while rows := self.gallery_db.unencoded(NOBODY, after=after):
            yield from rows
            after = rows[-1].version

    def locate(self, path: str | None) -> str | None:
        """The path or URI of a picture that the gallery database names. Raises ConfigError where
        nobody said where it lies.
        """
        if self.pictures is None:
            if is_kept(path):
                raise ConfigError(
                    "the gallery has pictures that clients have uploaded",
                    got="no place of them",
                    do="give --pictures, as the service has it",
                )
        elif path is not None and is_kept(path):
            return self.pictures.locate(path)
        return self.moved.locate(path)

    def replaced(self, beginning: str) -> tuple[str, int]:
        """The fingerprint that begins so, and the features that would go with it, none of which is
        an image's only one.

        Raises ConfigError where there is no such encoder, or no other one has encoded every image.
        """
        encoders = self.gallery_db.encoders()
        matching = [fingerprint for fingerprint in encoders if fingerprint.startswith(beginning)]
        if len(matching) != 1:
            known = ", ".join(fingerprint[:12] for fingerprint in encoders) or "none"
            raise ConfigError(
                f"{len(matching)} encoders begin with {beginning!r}", expected=f"one of {known}"
            )
        others = [count for fingerprint, count in encoders.items() if fingerprint not in matching]
        if max(others, default=0) < self.gallery_db.count():
            raise ConfigError(
                "no other encoder has encoded every image: some would have no feature at all",
                got=f"{max(others, default=0):,} images of {self.gallery_db.count():,}",
                do="first run jobs/index.py with the --bundle that stays",
            )
        return matching[0], encoders[matching[0]]


def is_kept(path: str | None) -> bool:
    """Whether the service keeps this picture itself, because a client has uploaded it."""
    return path is not None and path.startswith(SCHEME)


def sqlite_file(url: str) -> Path | None:
    """The file of a SQLite database, links resolved; None: it is PostgreSQL's. Raises
    GalleryError: no such URL.
    """
    address = database.address(url)
    return Path(address.database or "") if address.get_backend_name() == "sqlite" else None


def pictures_root(url: str, root: str = "") -> str:
    """Where uploaded pictures lie, unless `root` says another place; empty: nowhere."""
    file = sqlite_file(url)
    return root or (f"{file}.pictures" if file is not None else "")
