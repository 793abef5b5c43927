"""What must be true of the database, whatever has happened to the service."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Select, func, or_, select

from raycd.gallery_db import BUSY_S, database, faults
from raycd.gallery_db.tables import encoders, features, gallery, images
from raycd.redact import without_passwords

_FLOAT = 4  # bytes

_with_image = features.outerjoin(images, features.c.image_id == images.c.image_id)
_with_encoder = features.outerjoin(encoders, features.c.fingerprint == encoders.c.fingerprint)
_kept = or_(images.c.path.is_not(None), images.c.categories != "[]", images.c.attributes != "{}")
_COUNTED: dict[str, Select[Any]] = {
    "images are newer than the gallery's version": select(func.count())
    .select_from(images)
    .where(images.c.version > select(gallery.c.version).scalar_subquery()),
    "deleted images have kept their picture or what was known of them": select(func.count())
    .select_from(images)
    .where(images.c.deleted, _kept),
    "features belong to no image that is there": select(func.count())
    .select_from(_with_image)
    .where(or_(images.c.image_id.is_(None), images.c.deleted)),
    "features are of an encoder that is not known": select(func.count())
    .select_from(_with_encoder)
    .where(encoders.c.fingerprint.is_(None)),
    "features are not of their encoder's size": select(func.count())
    .select_from(_with_encoder)
    .where(func.length(features.c.feature) != _FLOAT * encoders.c.dim),
}


def integrity(file: Path) -> list[str]:
    """What SQLite itself finds wrong with a database's file; nothing where it is sound."""
    try:
        with closing(
            sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)
        ) as connection:
            found = [str(line) for (line,) in connection.execute("PRAGMA integrity_check(20)")]
    except sqlite3.DatabaseError as error:
        return [str(error)]
    return [] if found == ["ok"] else found


@contextmanager
def reading(url: str) -> Iterator[Connection]:
    """A transaction that reads one state of the database. Raises GalleryError where it cannot be
    read.
    """
    engine = database.engine(database.address(url), busy_s=BUSY_S)
    try:
        with (
            faults.told("reading the gallery", without_passwords(url)),
            engine.connect() as connection,
        ):
            if connection.dialect.name == "postgresql":
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            yield connection
    finally:
        engine.dispose()


def broken(connection: Connection) -> list[str]:
    """What is not as it must be, in words."""
    counts = {what: connection.execute(wanted).scalar_one() for what, wanted in _COUNTED.items()}
    return [f"{count:,} {what}" for what, count in counts.items() if count]


def names(connection: Connection, image_id: str, path: str) -> bool:
    """Whether the image still has this picture."""
    wanted = select(images.c.path).where(images.c.image_id == image_id)
    return connection.execute(wanted).scalar() == path
