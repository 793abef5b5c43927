"""A catalogue: images with titles and attributes, and no triplets, or hardly any.

It is a manifest (`manifest`) whose table of triplets may be absent. Where its table of images is
absent, too, the catalogue is every picture below the root: an image is called by its path there,
and its category is the subfolder of the root that it is in, "all" in the root itself. Both may be
absent only by the names that the settings give them unless told otherwise: a table that was named
has to be there.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from raycd import progress
from raycd.config import DataConfig
from raycd.data import manifest, parquet_images, sources
from raycd.data.build import DatasetBuilder
from raycd.data.folder import Folder
from raycd.data.schema import Dataset
from raycd.errors import DataError


class Labels(NamedTuple):
    """What is known of an image: empty where nothing is."""

    categories: list[str]
    attributes: dict[str, str]


def read(root: str, gallery: str, triplets: str) -> Dataset:
    """Read a catalogue. Raises DataError as `manifest.read`, and where there are no pictures."""
    unsaid, folder = DataConfig(), Folder(root)
    there = folder.names("")
    asked = triplets if triplets in there or triplets != unsaid.triplets else None
    if asked is None and (unread := _unnamed(there, triplets)):
        progress.say(
            f"warning: {unread} is not read, for data.triplets is {triplets}: "
            f"give --data.triplets {unread} to train or measure on it"
        )
    if gallery in there or gallery != unsaid.gallery or asked is not None:
        return _with_val(manifest.read(root, asked, gallery))
    if unread := _unnamed(there, gallery):
        raise DataError(
            "the catalogue has a table that the settings do not name",
            got=f"{unread}, and data.gallery {gallery}",
            do=f"give --data.gallery {unread}, or name the file otherwise if it is none",
        )
    return _pictures(root)


def _unnamed(there: Sequence[str], name: str) -> str | None:
    """Return a table that is there by a table's usual name, with another ending."""
    stem = posixpath.splitext(name)[0]
    usual = {f"{stem}{ending}" for ending in sources.TABLES}
    return next((one for one in there if one in usual), None)


def _with_val(found: Dataset) -> Dataset:
    """Return a catalogue whose images are searched, too, where none of them is said to be val's.

    The bundle's gallery is that of val, which a data set of one file, train-*.parquet, lacks.
    """
    gallery = found.gallery
    if len(gallery.filter(pc.equal(gallery["split"], "val"))):
        return found
    at = gallery.schema.get_field_index("split")
    val = pa.array(["val"] * len(gallery), gallery.schema.field(at).type)
    every = gallery.set_column(at, gallery.schema.field(at), val)
    # An image may be of train and of test
    once = every.group_by(every.column_names, use_threads=False).aggregate([])
    return replace(found, gallery=pa.concat_tables([gallery, once.cast(gallery.schema)]))


def labels(source: str) -> Mapping[str, Labels]:
    """Return what a source of pictures (`sources`) says of its images beside their files, by ids.

    A table says categories and attributes, Parquet files with pictures, too; a folder of pictures
    has categories as those of `read`. Raises DataError as that does.
    """
    parent, name = posixpath.split(source.rstrip("/"))
    if sources.tar_files(source):
        return {}
    is_table = posixpath.splitext(name)[1].lower() in sources.TABLES
    if not is_table and parquet_images.files(Folder(source), ""):
        parent, name, is_table = source, "*.parquet", True
    found = manifest.read(parent or ".", None, name) if is_table else _pictures(source)
    categories: dict[str, dict[str, None]] = {}
    for row in found.gallery.to_pylist():
        if row["category"] != manifest.CATEGORY:
            categories.setdefault(row["image_id"], {})[row["category"]] = None
    return {
        row["image_id"]: Labels(list(categories.get(row["image_id"], ())), dict(row["attributes"]))
        for row in found.images.to_pylist()
    }


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
