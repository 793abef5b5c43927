"""Whether a gallery is whole: its database's file, what must be true of the rows, and every picture.

The service may go on meanwhile. What it writes or removes at that moment is looked at a second time before it counts.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import fsspec
from sqlalchemy import ColumnElement, Connection, Select, and_, func, or_, select

from raycd.catalogue import BUSY_S, database, faults
from raycd.catalogue.place import Place, is_kept
from raycd.catalogue.tables import encoders, features, gallery, images
from raycd.errors import CatalogueError, DataError
from raycd.redact import without_passwords

SETTLED = timedelta(hours=1)  # after which no service is about to name a picture that it has kept


@dataclass(frozen=True)
class Found:
    """What a gallery has, and what is wrong with it."""

    version: int
    images: int
    encoders: dict[str, int]
    """Fingerprint -> images with its features."""
    faults: list[str]
    """Of the database."""
    named: int
    """Pictures that images name."""
    lost: list[str]
    """Images whose pictures are not there."""
    orphans: list[str]
    """Locations of pictures that no image names."""


def check(place: Place) -> Found:
    """Look at everything once. Raises CatalogueError, and DataError where a store of pictures cannot be reached."""
    found = integrity(place.file) if place.file is not None else []
    kept = set(place.pictures or ())  # before the rows: a picture is kept before an image names it
    named, gone = 0, list[tuple[str, str]]()
    for row in place.rows():
        if row.path is None:
            continue
        named += 1
        if row.path in kept:
            kept.discard(row.path)
        elif not _exists(place, row.path):
            gone.append((row.image_id, row.path))
    made = database.engine(database.address(place.url), busy_s=BUSY_S)
    with (
        faults.told("reading the gallery", without_passwords(place.url)),
        closing_engine(made),
        made.connect() as connection,
    ):
        found += invariants(connection)
        lost = [image_id for image_id, path in gone if _names(connection, image_id, path)]
    return Found(
        version=place.catalogue.version(),
        images=place.catalogue.count(),
        encoders=place.catalogue.encoders(),
        faults=found,
        named=named,
        lost=lost,
        orphans=sorted(kept),
    )
