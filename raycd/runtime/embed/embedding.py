"""Embedding on Ray Data (eq. 8) into a table in memory: a page of a gallery, a split, queries.

What a run or a user keeps is written in shards instead (`embed_shards`). The encoder travels
through the object store. On CPUs, tasks decode and encode; a worker process keeps the encoder (and
torch, which takes seconds to import) from one task to the next. With GPUs, actors decode on CPUs
and others encode on GPUs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from raycd import features
from raycd.config import Config, Precision
from raycd.evaluate import Triplet, query_key, text_of
from raycd.features import shards
from raycd.model import threads
from raycd.model.embed import (
    Batch,
    ComposeQueries,
    DecodeImages,
    EmbedImages,
    EmbedTexts,
    EncodeImages,
    frozen,
)
from raycd.model.encoder import Encoder
from raycd.runtime import cluster, datasets

Step = type[EmbedImages] | type[EmbedTexts] | type[ComposeQueries]
BLOCK = shards.BLOCK  # rows of a task, at most; it encodes embed.batch_size of them at once

# The encoder that this worker process used last, by the id of its object.
_cache: dict[str, Encoder] = {}


def embed_images(paths: Mapping[str, str | None], encoder: Encoder, config: Config) -> pa.Table:
    """Embed images, given as id -> path (None: no file was found).

    Returns:
        Rows (key, status, feature), as `raycd.features` keeps them.
    """
    table = pa.table(
        {
            "key": pa.array(list(paths), pa.string()),
            "path": pa.array(list(paths.values()), pa.string()),
        }
    )
    return _embed_rows("embed images", "images", table, EmbedImages, encoder, config)


def embed_texts(texts: Sequence[str], encoder: Encoder, config: Config) -> pa.Table:
    """Embed distinct texts; return rows (key, status, feature)."""
    table = pa.table({"key": pa.array(list(texts), pa.string())})
    return _embed_rows("embed texts", "texts", table, EmbedTexts, encoder, config)


def compose_queries(
    triplets: Sequence[Triplet], paths: Mapping[str, str | None], encoder: Encoder, config: Config
) -> pa.Table:
    """Compose the queries of triplets, whose references have these paths.

    Returns:
        Rows (key, status, feature) as above, by `query_key`.
    """
    table = query_table(triplets, paths)
    return _embed_rows("compose queries", "queries", table, ComposeQueries, encoder, config)


def query_table(triplets: Sequence[Triplet], paths: Mapping[str, str | None]) -> pa.Table:
    """Return the distinct queries of triplets as rows (key, path, text), by `query_key`."""
    queries = {query_key(triplet): triplet for triplet in triplets}
    references = [paths[triplet["reference"]] for triplet in queries.values()]
    return pa.table(
        {
            "key": pa.array(list(queries), pa.string()),
            "path": pa.array(references, pa.string()),
            "text": pa.array(map(text_of, queries.values()), pa.string()),
        }
    )


def _embed_rows(
    stage: str,
    unit: str,
    table: pa.Table,
    step: Step,
    encoder: Encoder,
    config: Config,
) -> pa.Table:
    """Return the rows in the order of `table`, whatever the order in which the workers finish."""
    if len(table) == 0:
        return features.to_table([], [], np.zeros((0, encoder.dim), np.float32))
    workers = cluster.fitting(
        config.compute.embed_workers, cluster.worker_resources(config.compute)
    )
    block = max(config.embed.batch_size, min(BLOCK, len(table) // (4 * workers)))
    blocks = datasets.blocks_of(table, block)
    shared = SharedEncoder(
        ray.put(encoder), config.embed.precision, cluster.threads(config.compute, workers)
    )
    steps: list[tuple[Any, dict[str, Any]]]
    if not cluster.uses_gpu(config.compute):
        steps = [(_embed, tasks(step, shared, min(workers, len(blocks)), config))]
    elif step is EmbedImages:
        steps = [
            decoders(encoder, workers, config),
            (_EncodeImages, actors(shared, workers, config)),
        ]
    elif step is ComposeQueries:
        options = actors(shared, workers, config)
        options["fn_constructor_args"] = (shared, config)
        steps = [(_ComposeQueries, options)]
    else:
        steps = [(_EmbedTexts, actors(shared, workers, config))]
    found = pa.concat_tables(list(datasets.mapped(stage, unit, blocks, *steps)))
    rows = {key: row for row, key in enumerate(found["key"].to_pylist())}
    return found.take([rows[key] for key in table["key"].to_pylist()])


class SharedEncoder:
    """An encoder in the object store, and how to use it; a worker process fetches it once."""

    def __init__(self, encoder: ray.ObjectRef[Any], precision: Precision, threads: int) -> None:
        self._encoder, self._precision, self._threads = encoder, precision, threads

    def get(self, device: str) -> Encoder:
        """Return the encoder on `device`, ready to encode."""
        name = f"{self._encoder.hex()} {device}"
        if name not in _cache:
            threads.use(self._threads)
            _cache.clear()
            _cache[name] = frozen(ray.get(self._encoder), self._precision, device)
        return _cache[name]


def tasks(step: Any, shared: SharedEncoder, workers: int, config: Config) -> dict[str, Any]:
    """Return how Ray Data runs tasks on CPUs."""
    return {
        "fn_kwargs": {"step": step, "shared": shared, "config": config},
        "compute": ray.data.TaskPoolStrategy(size=workers),
        "num_cpus": config.compute.cpus_per_worker,
    }


def _embed(block: Batch, step: Step, shared: SharedEncoder, config: Config) -> pa.Table:
    """Embed a block in batches of embed.batch_size, as a task."""
    encoder, size = shared.get("cpu"), config.embed.batch_size
    embed: EmbedTexts | EmbedImages | ComposeQueries = EmbedTexts(encoder)
    if step is not EmbedTexts:
        with_images = ComposeQueries if step is ComposeQueries else EmbedImages
        embed = with_images(encoder, config.data)
    firsts = range(0, len(block["key"]), size)
    return pa.concat_tables(
        [
            as_table(embed({name: column[first : first + size] for name, column in block.items()}))
            for first in firsts
        ]
    )


def actors(shared: SharedEncoder, workers: int, config: Config) -> dict[str, Any]:
    """Return how Ray Data runs actors on GPUs."""
    return {
        "fn_constructor_args": (shared,),
        "batch_size": config.embed.batch_size,
        "compute": ray.data.ActorPoolStrategy(size=workers),
        "num_cpus": config.compute.cpus_per_worker,
        "num_gpus": config.compute.gpus_per_worker,
    }


def decoders(encoder: Encoder, workers: int, config: Config) -> tuple[Any, dict[str, Any]]:
    """Return decoding actors, on the CPUs that the encoding actors leave, at least one.

    Where they leave none, it shares theirs: it would wait for one of its own for ever.
    """
    free = cluster.cpus() - workers * config.compute.cpus_per_worker
    return DecodeImages, {
        "fn_constructor_args": (encoder.preprocess.to_dict(), config.data),
        "batch_size": config.embed.batch_size,
        "compute": ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, int(free))),
        "num_cpus": 1 if free >= 1 else 0,
    }


def as_table(batch: Batch) -> pa.Table:
    """Return an encoded batch as rows (key, status, feature)."""
    return features.to_table(list(batch["key"]), list(batch["status"]), batch["feature"])


class _EncodeImages:
    """An actor on a GPU."""

    def __init__(self, shared: SharedEncoder) -> None:
        self.step = EncodeImages(shared.get("cuda"))

    def __call__(self, batch: Batch) -> pa.Table:
        return as_table(self.step(batch))


class _ComposeQueries:
    """An actor on a GPU, which also decodes: the model takes far longer."""

    def __init__(self, shared: SharedEncoder, config: Config) -> None:
        self.step = ComposeQueries(shared.get("cuda"), config.data)

    def __call__(self, batch: Batch) -> pa.Table:
        return as_table(self.step(batch))


class _EmbedTexts:
    """An actor on a GPU."""

    def __init__(self, shared: SharedEncoder) -> None:
        self.step = EmbedTexts(shared.get("cuda"))

    def __call__(self, batch: Batch) -> pa.Table:
        return as_table(self.step(batch))
