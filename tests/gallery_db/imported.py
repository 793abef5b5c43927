"""Tables to import, and what has come of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raycd import bundle
from raycd.gallery_db import GalleryDatabase
from tests.gallery_db.values import DIM, feature

OURS, OTHER = "a" * 64, "b" * 64  # encoders


def images(numbers: Sequence[int], *, colour: str = "blue", encoder: str = OURS) -> pa.Table:
    """Return a table to import; image n has a feature that begins with n."""
    return bundle.gallery_table(
        [f"image-{n}" for n in numbers],
        [["dress", "größe"]] * len(numbers),
        [f"/photos/{n}.jpg" for n in numbers],
        np.array([feature(n) for n in numbers], np.float32).reshape(-1, DIM),
        encoder,
        attributes=[{"colour": colour, "price": str(n)} for n in numbers],
    )


def contents(gallery_db: GalleryDatabase, encoder: str = OURS) -> dict[str, Any]:
    """Return everything of each image, by its id."""
    found = gallery_db.load(encoder)
    rows = zip(found.table.to_pylist(), found.features_GD.tolist(), strict=True)
    return {row["image_id"]: (*row.values(), feature_D) for row, feature_D in rows}
