"""Images for the tests of the gallery database."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raycd.gallery.records import Put

DIM = 4
CLIP, OTHER = "clip" * 16, "other" * 12  # fingerprints


def feature(number: float) -> NDArray[np.float32]:
    return np.array([number, 1, 2, 3], np.float32)


def put(image_id: str, number: float = 0.0, path: str | None = None) -> Put:
    return Put(image_id, feature(number), ("dress", "größe"), {"colour": "blue"}, path)


def table(size: int) -> pa.Table:
    """Return a bundle's gallery of images named own-0, own-1, ..."""
    from raycd import bundle  # torch: processes that write to databases need none

    features = np.array([feature(number) for number in range(size)], np.float32).reshape(size, DIM)
    names = [f"own-{number}" for number in range(size)]
    paths = [f"/photos/{name}.jpg" for name in names]
    return bundle.gallery_table(
        names, [["shirt"]] * size, paths, features, CLIP, attributes=[{"neck": "v"}] * size
    )
