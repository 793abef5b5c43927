"""Whether a gallery is whole: its database's file, what must be true of the rows, and every
picture.

The service may go on meanwhile. A picture that it adds or removes at that moment is looked at again
before it counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import fsspec

from raycd.errors import DataError, GalleryError
from raycd.gallery_db import invariants
from raycd.gallery_db.place import Place

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
    """Look at everything once.

    Raises GalleryError where the database cannot be read, DataError where a store of pictures
    cannot be reached.
    """
    faults = invariants.integrity(place.file) if place.file is not None else []
    with invariants.reading(place.url) as connection:
        faults += invariants.broken(connection)
    kept = set(place.pictures or ())  # before the rows: a picture is kept before an image names it
    named, gone = 0, dict[str, str]()
    for row in place.rows():
        if row.path is not None:
            named += 1
            if row.path not in kept and not _exists(place, row.path):
                gone[row.image_id] = row.path
            kept.discard(row.path)
    with invariants.reading(place.url) as connection:
        lost = [
            image_id
            for image_id, path in gone.items()
            if invariants.names(connection, image_id, path)
        ]
    gallery_db = place.gallery_db
    return Found(
        gallery_db.version(),
        gallery_db.count(),
        gallery_db.encoders(),
        faults,
        named,
        lost,
        sorted(kept),
    )


def mend(place: Place, found: Found) -> int:
    """Remove the pictures that no image has named for SETTLED; returns how many.

    Raises GalleryError where something else is wrong: then the pictures may belong to another
    gallery.
    """
    if found.faults or found.lost:
        raise GalleryError(
            "nothing was mended: first see to what else is wrong",
            "damaged",
            got=f"{len(found.faults)} faults of the database, {len(found.lost)} pictures that are not there",
            do="check --gallery and --pictures, or restore a backup",
        )
    old = [location for location in found.orphans if _age(place, location) > SETTLED]
    for location in old:
        if place.pictures is not None:
            place.pictures.remove(location)
    return len(old)


def _exists(place: Place, path: str) -> bool:
    where = place.locate(path)
    try:
        store, inside = fsspec.url_to_fs(where)
        return bool(store.exists(inside))
    except (ImportError, ValueError, OSError) as error:
        raise DataError(
            f"the store of {where} cannot be reached",
            got=f"{type(error).__name__}: {error}",
            do="check its credentials and that the fsspec package of its protocol is installed",
        ) from error


def _age(place: Place, location: str) -> timedelta:
    """Since it was written; none where it has gone."""
    store, inside = fsspec.url_to_fs(place.locate(location))
    try:
        written: datetime = store.modified(inside)
    except FileNotFoundError:
        return timedelta(0)
    return datetime.now(UTC) - written
