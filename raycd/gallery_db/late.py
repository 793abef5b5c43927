"""Features of images that could not be encoded when they changed: their pictures' store failed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select, update

from raycd.gallery_db import GalleryDatabase
from raycd.gallery_db.tables import STATE, gallery, images


def add_features(
    gallery_db: GalleryDatabase,
    fingerprint: str,
    given: Sequence[tuple[str, int, NDArray[np.float32]]],
) -> None:
    """Store features as `GalleryDatabase.add_features`, and give their images new versions.

    Whoever follows the gallery has passed the images' versions: it learns of them as of changes.
    Images that have changed meanwhile are left alone.
    """
    if not given:
        return
    gallery_db.add_features(fingerprint, given)
    with gallery_db.transaction("writing to the gallery") as connection:
        newest = connection.execute(select(gallery.c.version).with_for_update()).scalar_one()
        for image_id, version, _ in sorted(given, key=lambda one: one[1]):
            same = (images.c.image_id == image_id) & (images.c.version == version)
            changed = update(images).where(same, ~images.c.deleted)
            newest += connection.execute(changed.values(version=newest + 1)).rowcount
        connection.execute(update(gallery).where(gallery.c.id == STATE).values(version=newest))
