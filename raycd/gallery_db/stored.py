"""A stored gallery, its database and its pictures, as jobs open it beside the service."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from raycd.data.moved import Move
from raycd.errors import ConfigError, GalleryError, called
from raycd.gallery.records import Row
from raycd.gallery_db import GalleryDatabase, database
from raycd.gallery_db.pictures import SCHEME, Pictures

_FINGERPRINT = re.compile("[0-9a-f]{64}")
_NO_ENCODER = ""  # a fingerprint that no encoder has: no image has a feature of it


@dataclass(frozen=True)
class StoredGallery:
    """A gallery database that exists already, and the pictures that the service keeps for it."""

    url: str = field(repr=False)  # with its password, if it has one
    gallery_db: GalleryDatabase
    pictures: Pictures | None
    """None where their folder is not known."""
    moved: Move = field(default_factory=Move, kw_only=True)
    """How the run beside whose bundle the database lies was moved."""

    @classmethod
    @contextmanager
    def open(cls, url: str, root: str = "", *, create: bool = False) -> Iterator[Self]:
        """Open the gallery inside of the block.

        Args:
            root: Folder or URI of the pictures; empty: beside the SQLite file, as for the service.
            create: Make an empty one where there is none.

        Raises:
            GalleryError: There is no gallery, it cannot be opened, or it has another schema.
        """
        file = sqlite_file(url)
        if file is not None and not file.is_file() and not create:
            raise GalleryError(
                f"there is no gallery at {file}",
                "unreachable",
                expected="a SQLite file that the service has made, or a postgresql:// URL",
                do="check --gallery",
            )
        root = pictures_root(url, root)
        # By default the service puts a SQLite file beside the folder of its bundle.
        moved = Move() if file is None else Move.of(file.parent / "bundle")
        with GalleryDatabase.open(url, migrate=False, create=create) as gallery_db:
            yield cls(url, gallery_db, Pictures(root) if root else None, moved=moved)

    @property
    def file(self) -> Path | None:
        """The file of a SQLite database; None for PostgreSQL."""
        return sqlite_file(self.url)

    def rows(self) -> Iterator[Row]:
        """Iterate over all images, without features, by version; a few of them are in memory."""
        after = 0
        while rows := self.gallery_db.unencoded(_NO_ENCODER, after=after):
            yield from rows
            after = rows[-1].version

    def locate(self, path: str | None) -> str | None:
        """Return the path or URI of a picture that the database names.

        Raises:
            ConfigError: It is an uploaded picture, and their folder is not known.
        """
        if is_uploaded(path):
            if self.pictures is None:
                raise ConfigError(
                    "the gallery has pictures that clients have uploaded",
                    got="no folder of them",
                    do="give --pictures, as the service has it",
                )
            return self.pictures.locate(path or "")
        return self.moved.locate(path)

    def removable_encoder(self, prefix: str) -> tuple[str, int]:
        """Return the fingerprint with this prefix, and the number of features that it has.

        Raises:
            ConfigError: There is no such encoder, or no other one has encoded every image.
        """
        encoders = self.gallery_db.encoders()
        matching = [fingerprint for fingerprint in encoders if fingerprint.startswith(prefix)]
        if len(matching) != 1:
            known = ", ".join(fingerprint[:12] for fingerprint in encoders) or "none"
            what = f"{len(matching)} encoders begin with {prefix!r}"
            raise ConfigError(what, expected=f"one of {known}")
        others = [count for fingerprint, count in encoders.items() if fingerprint not in matching]
        if max(others, default=0) < self.gallery_db.count():
            raise ConfigError(
                "no other encoder has encoded every image: some would have no feature at all",
                got=f"{max(others, default=0):,} images of {self.gallery_db.count():,}",
                do=f"first run {called('jobs/index.py')} with the --bundle that stays",
            )
        return matching[0], encoders[matching[0]]

    def encoder_of(self, named: str, asked: str) -> str:
        """Return the fingerprint of the encoder whose features are to be imported.

        Args:
            named: The one that they name; empty where they name none.
            asked: The one that the user names, or how it begins; empty where none.

        Raises:
            ConfigError: It is not certain, or the features are of another one than the user's.
            GalleryError: The gallery has features, and none of that encoder, which nobody named.
        """
        known = self.gallery_db.encoders()
        if not asked:
            if not named:
                raise ConfigError(
                    "it is not known which encoder the features are of: the files do not name it",
                    do="give --encoder, its fingerprint: manifest.json of a bundle has it",
                )
            if known and named not in known:
                raise GalleryError(
                    "the features are of an encoder that the gallery does not know",
                    "mismatch",
                    got=named[:12],
                    expected=" or ".join(fingerprint[:12] for fingerprint in known),
                    do="embed with the encoder of the service's bundle; where a bundle with this "
                    f"encoder is to be served next, give --encoder {named[:12]}",
                )
            return named
        matching = {one for one in (named, *known) if one and one.startswith(asked)}
        if not matching and _FINGERPRINT.fullmatch(asked):
            matching = {asked}
        if len(matching) != 1 or (named and named not in matching):
            raise ConfigError(
                "--encoder is not the encoder of the features",
                got=asked[:64],
                expected=named or "64 hexadecimal digits, or how one begins that the gallery knows",
            )
        return matching.pop()


def is_uploaded(path: str | None) -> bool:
    """Return whether a client has uploaded this picture, so that the service keeps it itself."""
    return path is not None and path.startswith(SCHEME)


def sqlite_file(url: str) -> Path | None:
    """Return the file of a SQLite database, links resolved; None for PostgreSQL.

    Raises:
        GalleryError: The URL is malformed.
    """
    address = database.address(url)
    return Path(address.database or "") if address.get_backend_name() == "sqlite" else None


def pictures_root(url: str, root: str = "") -> str:
    """Return the folder of uploaded pictures: `root`, or the one beside a SQLite file, or none."""
    file = sqlite_file(url)
    return root or (f"{file}.pictures" if file is not None else "")
