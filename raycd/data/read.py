"""The data set that a configuration names, read by the reader of its format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa

from raycd.config import DataConfig
from raycd.data import catalogue, circo, cirr, fashioniq, files, genecis, manifest
from raycd.data.captions import Wording
from raycd.data.parts import file_of
from raycd.data.schema import Dataset

# Formats whose captions are taken as they are: CIRR's by Clip4Cir, the others' by their authors
RAW = ("cirr", "circo", "genecis")


def read(
    config: DataConfig, root: str | None = None, *, splits: Sequence[str] = ("train", "val")
) -> Dataset:
    """Read splits of the data set at `root`, or at data.root where it is None.

    Of circo and genecis, which have no train split, those that there are. Raises DataError as the
    readers do.
    """
    root = config.root if root is None else root
    return replace(_read(config, root, splits), wording=wording(config))


def wording(config: DataConfig) -> Wording:
    """Return how the captions of a data set become texts."""
    raw = config.captions == "raw" or (config.captions == "auto" and config.format in RAW)
    return Wording(raw=raw, keep_empty=config.empty_captions == "keep")


def _read(config: DataConfig, root: str, splits: Sequence[str]) -> Dataset:
    if config.format == "cirr":
        return cirr.read(root, splits)
    if config.format == "circo":
        return circo.read(root, [split for split in splits if split in circo.SPLITS])
    if config.format == "genecis":
        return genecis.read(root)
    if config.format == "catalogue":
        return catalogue.read(root, config.gallery, config.triplets)
    if config.format == "manifest":  # its tables say themselves which splits there are
        return manifest.read(root, config.triplets, config.gallery)
    return fashioniq.read(root, config.categories, splits)


def content_hash(dataset: Dataset, *, drawn: bool = False) -> str:
    """Return a hash of images, their files, galleries and triplets, equal wherever the files are.

    A file that comes, goes, or changes its size or modification time (in a store: its etag) changes
    the hash, see `files`. Of images `drawn` by raycd itself only the size counts, so that a run may
    be copied in any way. Attributes have a hash of their own: a change of them repeats no training,
    embedding or evaluation. Raises DataError where a store does not answer.
    """
    paths = dataset.images["path"].to_pylist()
    found = files.states(paths, times=not drawn)
    # Which part of a file an image is; nothing where each is a file of its own, as it always was
    inside = [path.removeprefix(file_of(path)) if path else "" for path in paths]
    return _hash(
        [
            dataset.images["image_id"].to_pylist(),
            found,
            dataset.gallery.to_pydict(),
            _triplets(dataset).to_pydict(),
            *([inside] if any(inside) else []),
        ]
    )


def _triplets(dataset: Dataset) -> pa.Table:
    """Return the triplets, without the columns that came later and that this data set does not use.

    So the hash of a data set of single targets, and with it every run, stays what it was.
    """
    triplets = dataset.triplets
    later = ("further_targets", "weight", "negatives")
    return triplets.drop([one for one in later if triplets[one].null_count == len(triplets)])


def attributes_hash(dataset: Dataset) -> str:
    """Return a hash of the attributes of the images."""
    return _hash([dataset.images.select(["image_id", "attributes"]).to_pydict()])


def _hash(parts: Sequence[object]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps(part).encode())
    return digest.hexdigest()
