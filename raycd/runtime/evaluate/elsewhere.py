"""A trained model on data that it was not trained with: a test split, or another data set.

Nothing is kept: the images and texts of the split are embedded each time.
"""

from __future__ import annotations

import posixpath
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from raycd import bundle, scratch
from raycd.bundle import cache
from raycd.config import Config
from raycd.data.folder import absolute, is_local
from raycd.data.missing import ImageReport
from raycd.data.read import read
from raycd.data.schema import Dataset
from raycd.features import READABLE, Features, map_cache
from raycd.features.map_cache import Extras
from raycd.model import encoder as encoders
from raycd.model import fusion
from raycd.model.encoder import Encoder
from raycd.model.fusion import Head, HeadConfig, joint
from raycd.model.fusion.head import WORDS
from raycd.run import local_copy, open_uri
from raycd.runtime import cluster
from raycd.runtime.embed import embed_maps, embedding
from raycd.runtime.evaluate.evaluation import Variant, variant
from raycd.runtime.stages.context import FINE_TUNED, Context


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
    def of_bundle(cls, place: str) -> Model:
        """Return the model of a bundle, a folder or on a store.

        Raises WeightsError where it is damaged, DataError where the store does not answer.
        """
        loaded = bundle.load(Path(place) if is_local(place) else cache.fetch(place))
        return cls(loaded.encoder, loaded.head, loaded.head_config)


def dataset(config: Config, split: str) -> Dataset:
    """Read one split of the data set of a configuration. Raises DataError as the readers do."""
    return read(config.data, splits=(split,))


def variants(
    model: Model, data: Dataset, split: str, config: Config
) -> tuple[list[Variant], ImageReport]:
    """Embed a split on Ray; return the fine-tuned sum and the head, and the missing images."""
    paths = dict(
        zip(data.images["image_id"].to_pylist(), data.images["path"].to_pylist(), strict=True)
    )
    wanted = dict.fromkeys(data.images_of(split))
    texts = dict.fromkeys(row["text"] for row in data.queries(split, both_orders=True))
    images, missing, text_features, extras = _embedded(
        model, {image_id: paths[image_id] for image_id in wanted}, list(texts), config
    )
    total = fusion.create(HeadConfig("sum", model.encoder.dim))
    composed = None
    if model.head_config.name == joint.NAME:
        composed = _composed(model, data.queries(split, both_orders=True), paths, config)
    return [
        variant(FINE_TUNED, total, images, text_features, config),
        variant(
            *(model.head_config.name, model.head, images, text_features, config),
            extras=extras,
            composed=composed,
        ),
    ], missing


def _embedded(
    model: Model, paths: dict[str, str | None], texts: list[str], config: Config
) -> tuple[Features, ImageReport, Features, Extras]:
    encoder, caches = model.encoder, dict[str, map_cache.MapCache | map_cache.Words]()
    with cluster.connected(), _shared_folder(config) as folder:
        table = embedding.embed_images(paths, encoder, config)
        images, missing = Features.of_table(table), _report(table)
        text_features = Features.of_table(embedding.embed_texts(texts, encoder, config))
        all_texts = pa.table({"key": pa.array(texts, pa.string())})
        readable = {key: path for key, path in paths.items() if key not in missing.reasons}
        columns = {"key": list(readable), "path": list(readable.values())}
        there = pa.table({name: pa.array(own, pa.string()) for name, own in columns.items()})
        for need in sorted(model.head.needs - {WORDS}):
            given, size = (all_texts, 0) if need == "tokens" else (there, _side(model, need))
            place = posixpath.join(folder, need)
            embed_maps.write_cache(place, need, given, encoder, size, config)
            with scratch.folder() as copies:
                caches[need] = map_cache.read(local_copy(place, copies))  # outlives its files
    if WORDS in model.head.needs:
        words = encoder.tokenizer
        caches[WORDS] = map_cache.Words(words, list(model.head_config.extra[WORDS]))
    return images, missing, text_features, Extras(caches)


@contextmanager
def _shared_folder(config: Config) -> Iterator[str]:
    """Give a folder or URI that all machines reach, gone at the end of the block."""
    if cluster.machines() == 1:
        with scratch.folder() as folder:
            yield str(folder)
        return
    uri = absolute(posixpath.join(config.runs, f".maps-{uuid.uuid4().hex}"))
    try:
        yield uri
    finally:
        file_system, path = open_uri(uri)
        with suppress(FileNotFoundError):
            file_system.rm(path, recursive=True)


def _composed(
    model: Model, rows: list[dict[str, Any]], paths: dict[str, str | None], config: Config
) -> Features:
    with cluster.connected():
        return Features.of_table(embedding.compose_queries(rows, paths, model.encoder, config))


def _report(table: pa.Table) -> ImageReport:
    """Return which images of a table have no feature, and why."""
    status = zip(table["key"].to_pylist(), table["status"].to_pylist(), strict=True)
    return ImageReport({key: why for key, why in status if why != READABLE})


def _side(model: Model, need: str) -> int:
    """Return the longer side of the maps that the head was trained on; none is pooled below it."""
    return max(model.head_config.extra[need][1:])
