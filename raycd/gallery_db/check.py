"""Checks of a stored gallery: the file of its database, the invariants of its rows, every picture.

The service may go on meanwhile. A picture that it adds or removes at that moment is checked again
before it counts.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Select, func, or_, select

from raycd.data import files
from raycd.errors import GalleryError
from raycd.gallery_db.pictures import Pictures
from raycd.gallery_db.stored import StoredGallery
from raycd.gallery_db.tables import FLOAT, encoders, features, gallery, images

# A service writes a picture's file before the row that names it: orphans become certain with time.
SETTLED = timedelta(hours=1)
_TOGETHER = 1000  # pictures that a store is asked for at once

_with_image = features.outerjoin(images, features.c.image_id == images.c.image_id)
_with_encoder = features.outerjoin(encoders, features.c.fingerprint == encoders.c.fingerprint)
_kept = or_(images.c.path.is_not(None), images.c.categories != "[]", images.c.attributes != "{}")
_newest = select(gallery.c.version).scalar_subquery()


def _count(table: Any, condition: Any) -> Select[Any]:
    return select(func.count()).select_from(table).where(condition)


_VIOLATIONS: dict[str, Select[Any]] = {
    "images are newer than the gallery's version": _count(images, images.c.version > _newest),
    "deleted images have kept their picture or what was known of them": _count(
        images, images.c.deleted & _kept
    ),
    "features belong to no image that is there": _count(
        _with_image, or_(images.c.image_id.is_(None), images.c.deleted)
    ),
    "features are of an encoder that is not known": _count(
        _with_encoder, encoders.c.fingerprint.is_(None)
    ),
    "features are not of their encoder's size": _count(
        _with_encoder, func.length(features.c.feature) != FLOAT.itemsize * encoders.c.dim
    ),
}


@dataclass(frozen=True)
class Checked:
    """What a gallery has, and what is wrong with it."""

    version: int
    images: int
    encoders: dict[str, int]
    """Fingerprint -> images with its features."""
    faults: list[str]
    """Faults of the database."""
    named: int
    """Number of pictures that images name."""
    uploaded: int
    """How many of the pictures that the service keeps an image names."""
    lost: list[str]
    """Images whose pictures are not there."""
    orphans: list[str]
    """Locations of pictures that no image names."""


def check(stored: StoredGallery) -> Checked:
    """Check everything once.

    Raises:
        GalleryError: The database cannot be read, or the pictures cannot be listed.
        DataError: A store of pictures does not answer.
    """
    wrong = integrity(stored.file) if stored.file is not None else []
    with stored.gallery_db.reading() as connection:
        if connection.dialect.name == "postgresql":  # one state for all statements
            connection.execution_options(isolation_level="REPEATABLE READ")
        wrong += _violations(connection)
    # Listed before the rows are read: the service writes a picture before the row that names it.
    unnamed = set(stored.pictures or ())
    kept = len(unnamed)
    named, gone, elsewhere = 0, dict[str, str](), dict[str, str]()
    for row in stored.rows():
        if row.path is not None:
            named += 1
            if row.path not in unnamed:
                elsewhere[row.image_id] = row.path
            unnamed.discard(row.path)
            if len(elsewhere) == _TOGETHER:
                gone |= _absent(stored, elsewhere)
                elsewhere.clear()
    gone |= _absent(stored, elsewhere)
    with stored.gallery_db.reading() as connection:
        lost = [image_id for image_id, path in gone.items() if _names(connection, image_id, path)]
    gallery_db = stored.gallery_db
    return Checked(
        gallery_db.version(),
        gallery_db.count(),
        gallery_db.encoders(),
        wrong,
        named,
        kept - len(unnamed),
        lost,
        sorted(unnamed),
    )


def remove_orphans(stored: StoredGallery, found: Checked) -> int:
    """Remove the pictures that no image has named for SETTLED; return how many.

    Raises:
        GalleryError: Something else is wrong, or no image names any of the pictures, so that they
            may belong to another gallery; or their store fails.
    """
    if found.faults or found.lost:
        raise GalleryError(
            "nothing was removed: first fix what else is wrong",
            "damaged",
            got=f"{len(found.faults)} faults of the database, "
            f"{len(found.lost)} pictures that are not there",
            do="check --gallery and --pictures, or restore a backup",
        )
    if stored.pictures is None:
        return 0
    old = [location for location in found.orphans if _age(stored.pictures, location) > SETTLED]
    if old and not found.uploaded:
        raise GalleryError(
            "nothing was removed: no image of this gallery names any of these pictures, so they "
            "may be another gallery's",
            "damaged",
            got=f"{len(old)} pictures",
            do="check --gallery and --pictures; if they are this gallery's, remove them by hand",
        )
    for location in old:
        stored.pictures.remove(location)
    return len(old)


def integrity(file: Path) -> list[str]:
    """Return the faults that SQLite itself finds in a database's file; empty where it is sound."""
    uri = f"{file.absolute().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            found = [str(line) for (line,) in connection.execute("PRAGMA integrity_check(20)")]
    except sqlite3.DatabaseError as error:
        return [str(error)]
    return [] if found == ["ok"] else found


def _violations(connection: Connection) -> list[str]:
    """Return the violated invariants, in words."""
    counts = {what: connection.execute(rows).scalar_one() for what, rows in _VIOLATIONS.items()}
    return [f"{count:,} {what}" for what, count in counts.items() if count]


def _names(connection: Connection, image_id: str, path: str) -> bool:
    """Return whether the image still has this picture."""
    wanted = select(images.c.path).where(images.c.image_id == image_id)
    return connection.execute(wanted).scalar() == path


def _absent(stored: StoredGallery, paths: dict[str, str]) -> dict[str, str]:
    """Return those images whose pictures are not there."""
    states = files.states(map(stored.locate, paths.values()), times=False)
    named = zip(paths.items(), states, strict=True)
    return {image_id: path for (image_id, path), state in named if state is None}


def _age(pictures: Pictures, location: str) -> timedelta:
    """Return the time since a picture was written; zero where it has gone."""
    written = pictures.written(location)
    return timedelta(0) if written is None else datetime.now(UTC) - written
