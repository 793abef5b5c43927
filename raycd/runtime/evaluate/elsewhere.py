"""A trained model on data that it was not trained with: a test split, or another data set.

Nothing is kept: the images and texts of the split are embedded each time, into shards of a folder
that is gone afterwards; their features are then in mapped files, not in the driver's memory.
"""

from __future__ import annotations

import posixpath
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from raycd import bundle, scratch
from raycd.bundle import cache
from raycd.config import Config
from raycd.data.folder import absolute, is_local
from raycd.data.missing import ImageReport
from raycd.data.read import read
from raycd.data.schema import Dataset
from raycd.features import Features, map_cache
from raycd.features.map_cache import Extras
from raycd.index.half import room
from raycd.model import encoder as encoders
from raycd.model import fusion
from raycd.model.encoder import Encoder
from raycd.model.fusion import Head, HeadConfig, joint
from raycd.model.fusion.head import WORDS
from raycd.run import local_copy, open_uri
from raycd.runtime import cluster, local_ray
from raycd.runtime.embed import embed_maps, embed_shards
from raycd.runtime.evaluate.evaluation import Variant, variant
from raycd.runtime.stages.context import (
    FINE_TUNED,
    Context,
    image_table,
    query_table,
    texts_of,
)


@dataclass(frozen=True)
class Model:
    """An encoder, and the head that belongs to it."""

    encoder: Encoder
    head: Head
    head_config: HeadConfig

    @classmethod
    def of_run(cls, context: Context) -> Model:
        """Return the model of a run that has trained its head."""
        encoder = encoders.load_saved(context.run.local("stage1") / "encoder")
        head, config = fusion.load(context.run.local("stage2") / "head", dim=encoder.dim)
        return cls(encoder, head, config)

    @classmethod
    def of_bundle(cls, uri: str) -> Model:
        """Return the model of a bundle, a folder or on a store.

        Raises WeightsError where it is damaged, DataError where the store does not answer.
        """
        loaded = bundle.load(Path(uri) if is_local(uri) else cache.fetch(uri), gallery=False)
        return cls(loaded.encoder, loaded.head, loaded.head_config)


def dataset(config: Config, split: str, root: str | None = None) -> Dataset:
    """Read one split of the data set of a configuration, at `root` where it is not at data.root.

    Raises DataError as the readers do.
    """
    return read(config.data, root, splits=(split,))


def variants(model: Model, data: Dataset, split: str, config: Config) -> list[Variant]:
    """Embed a split on Ray; return the fine-tuned sum and the head.

    Raises DataError where more of the split's images are missing than `data.max_missing`.
    """
    images = image_table(data)
    wanted = pa.array(dict.fromkeys(data.images_of(split)), pa.string())
    tables = {
        "images": images.filter(pc.is_in(images["key"], value_set=wanted)),
        "texts": pa.table({"key": pa.array(texts_of(data, [split]), pa.string())}),
    }
    if model.head_config.name == joint.NAME:
        tables["queries"] = query_table(data, split)
    found, missing, extras = _embedded(model, tables, config)
    missing.check(len(wanted), config.data.max_missing)
    total = fusion.create(HeadConfig("sum", model.encoder.dim))
    features = found["images"], found["texts"]
    composed = found.get("queries")
    return [
        variant(FINE_TUNED, total, *features, config),
        variant(model.head_config.name, model.head, *features, config, extras, composed),
    ]


def _embedded(
    model: Model, tables: dict[str, pa.Table], config: Config
) -> tuple[dict[str, Features], ImageReport, Extras]:
    """Embed images, texts and, for the head joint, queries; fill the caches that the head needs."""
    encoder, caches = model.encoder, dict[str, map_cache.MapCache | map_cache.LazyTokens]()
    with cluster.connected(config.compute), _shared_folder(config) as folder:
        stored = {
            unit: embed_shards.embed_table(
                posixpath.join(folder, unit), unit, table, encoder, config
            )
            for unit, table in tables.items()
        }
        found = {
            unit: own.features(tables[unit]["key"].to_pylist(), room=room)
            for unit, own in stored.items()
        }
        images = tables["images"]
        there = images.filter(pc.is_in(images["key"], value_set=stored["images"].keys()))
        for need in sorted(model.head.needs - {WORDS}):
            given, size = (tables["texts"], 0) if need == "tokens" else (there, _side(model, need))
            uri = posixpath.join(folder, need)
            embed_maps.write_cache(uri, need, given, encoder, size, config)
            with scratch.folder() as copies:
                caches[need] = map_cache.read(local_copy(uri, copies))  # outlives its files
        missing = stored["images"].report()
    if WORDS in model.head.needs:
        words = encoder.tokenizer
        caches[WORDS] = map_cache.LazyTokens(words, list(model.head_config.extra[WORDS]))
    return found, missing, Extras(caches)


@contextmanager
def _shared_folder(config: Config) -> Iterator[str]:
    """Give a folder or URI that all machines reach, gone at the end of the block."""
    if not local_ray.address():  # a cluster's workers may be elsewhere, however few there are now
        with scratch.folder() as folder:
            yield str(folder)
        return
    uri = absolute(posixpath.join(config.runs, f".split-{uuid.uuid4().hex}"))
    try:
        yield uri
    finally:
        file_system, path = open_uri(uri)
        with suppress(FileNotFoundError):
            file_system.rm(path, recursive=True)


def _side(model: Model, need: str) -> int:
    """Return the longer side of the maps that the head was trained on; none is pooled below it."""
    return max(model.head_config.extra[need][1:])
