"""The data set that a configuration names, read by the reader of its format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from raycd.config import DataConfig
from raycd.data import cirr, fashioniq, files, manifest
from raycd.data.schema import Dataset


def read(config: DataConfig, root: str | None = None) -> Dataset:
    """Read train and val of the data set at `root`, or at data.root where it is None.

    Raises DataError as the readers do.
    """
    root = config.root if root is None else root
    if config.format == "cirr":
        return cirr.read(root)
    if config.format == "manifest":
        return manifest.read(root, config.triplets, config.gallery)
    return fashioniq.read(root, config.categories)


def content_hash(dataset: Dataset, *, drawn: bool = False) -> str:
    """Return a hash of images, their files, galleries and triplets, equal wherever the files are.

    A file that comes, goes, or changes its size or modification time (in a store: its etag) changes
    the hash, see `files`. Of images `drawn` by raycd itself only the size counts, so that a run may
    be copied in any way. Attributes have a hash of their own: a change of them repeats no training,
    embedding or evaluation. Raises DataError where a store does not answer.
    """
    found = files.states(dataset.images["path"].to_pylist(), times=not drawn)
    return _hash(
        [
            dataset.images["image_id"].to_pylist(),
            found,
            dataset.gallery.to_pydict(),
            dataset.triplets.to_pydict(),
        ]
    )


def attributes_hash(dataset: Dataset) -> str:
    """Return a hash of the attributes of the images."""
    return _hash([dataset.images.select(["image_id", "attributes"]).to_pydict()])


def _hash(parts: Sequence[object]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps(part).encode())
    return digest.hexdigest()
