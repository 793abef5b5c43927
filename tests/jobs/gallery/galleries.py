"""A small gallery, and jobs/gallery.py called on it."""

from pathlib import Path

import numpy as np

from jobs import gallery
from raycd.gallery.records import Put
from raycd.gallery_db import GalleryDatabase
from raycd.gallery_db.pictures import Pictures

OURS, OTHER = "a" * 64, "b" * 64  # encoders
FEATURE = np.arange(1, 5, dtype=np.float32)


def uploaded(image_id: str, pictures: Pictures, content: bytes = b"picture") -> Put:
    return Put(image_id, FEATURE, ("dress",), {"colour": "blue"}, pictures.add(content, "png"))


def picture(gallery_db: GalleryDatabase, pictures: Pictures, image_id: str = "uploaded") -> Path:
    [row] = [row for row in gallery_db.changes(0, OURS).rows if row.image_id == image_id]
    assert row.path is not None
    return Path(pictures.locate(row.path))


def run(command: str, url: str, pictures: Pictures, *more: object) -> int:
    return gallery.main([command, "--gallery", url, "--pictures", pictures.root, *map(str, more)])


def contents(gallery_db: GalleryDatabase) -> list[object]:
    found = gallery_db.load(OURS)
    return [found.version, found.table.to_pylist(), found.features_GD.tolist()]
