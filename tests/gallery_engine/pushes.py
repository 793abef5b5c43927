"""Images, pushes and what a collection has afterwards."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raycd.gallery.records import Put
from raycd.gallery_db import GalleryDatabase
from raycd.gallery_db.leases import Lease
from raycd.gallery_engine import expressions, pushing
from raycd.gallery_engine.address import Address
from raycd.gallery_engine.collection import Collection
from raycd.gallery_engine.pushing import Push
from tests.milvus import Milvus

DIM = 4
CLIP, OTHER = "clip" * 16, "other" * 12


def feature(number: float) -> NDArray[np.float32]:
    return np.array([number, 1, 2, 3], np.float32)


def put(gallery_db: GalleryDatabase, *numbers: int, value: float = 0.0) -> int:
    changes = [Put(f"image-{i}", feature(i + value), ("dress",)) for i in numbers]
    return gallery_db.write(changes, CLIP)[-1].version


def pushed(
    milvus: Milvus, gallery_db: GalleryDatabase, holder: str = "me", fingerprint: str = CLIP
) -> tuple[Push, Collection]:
    name = pushing.name(gallery_db, fingerprint)
    collection = Collection(Address.parse(milvus.url), name, DIM)
    lease = Lease(gallery_db, name, holder, pushing.LEASE_S)
    return Push(gallery_db, fingerprint, collection, list, lease), collection


def finish(push: Push) -> None:
    while push.advance():
        pass


def contents(collection: Collection) -> dict[str, float]:
    """Return the first number of each image's feature."""
    found = collection.query(expressions.ALL, ["image_id", "feature", "length"], written=0)
    return {one["image_id"]: round(one["feature"][0] * one["length"], 3) for one in found}
