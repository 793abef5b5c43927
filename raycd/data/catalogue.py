"""A catalogue: images with titles and attributes, and no triplets, or hardly any.

It is a manifest (`manifest`) whose table of triplets may be absent. Where its table of images is
absent, too, the catalogue is every picture below the root: an image is called by its path there,
and its category is the subfolder of the root that it is in, "all" in the root itself. Both may be
absent only by the names that the settings give them unless told otherwise: a table that was named
has to be there.
"""

from __future__ import annotations

from raycd.config import DataConfig
from raycd.data import manifest, sources
from raycd.data.build import DatasetBuilder
from raycd.data.folder import Folder
from raycd.data.schema import Dataset


def read(root: str, gallery: str, triplets: str) -> Dataset:
    """Read a catalogue. Raises DataError as `manifest.read`, and where there are no pictures."""
    unsaid, folder = DataConfig(), Folder(root)
    there = folder.names("")
    asked = triplets if triplets in there or triplets != unsaid.triplets else None
    if gallery in there or gallery != unsaid.gallery or asked is not None:
        return manifest.read(root, asked, gallery)
    return _pictures(root)


def _pictures(root: str) -> Dataset:
    builder, paths = DatasetBuilder(), dict[str, str]()
    categories: dict[str, list[str]] = {}
    for block in sources.blocks(root):
        for row in block.to_pylist():
            category, slash, _ = row["key"].partition("/")
            categories.setdefault(category if slash else manifest.CATEGORY, []).append(row["key"])
            paths[row["key"]] = row["path"]
    for category, image_ids in categories.items():
        for split in ("train", "val"):
            builder.add_gallery(category, split, image_ids, source=root)
    return builder.build(paths)
