"""Embedding of images on Ray Data (eq. 8) into a table in memory: a page of a gallery.

All else is written in shards (`embed_shards`). The encoder travels
through the object store. On CPUs, tasks decode and encode; a worker process keeps the encoder (and
torch, which takes seconds to import) from one task to the next. With GPUs, actors decode on CPUs
and others encode on GPUs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from raycd import features
from raycd.config import Config, Precision
from raycd.features import shards
from raycd.model import threads
from raycd.model.embed import (
    Batch,
    DecodeImages,
    EmbedImages,
    EncodeImages,
    frozen,
)
from raycd.model.encoder import Encoder
from raycd.runtime import cluster, datasets

BLOCK = shards.BLOCK  # rows of a task, at most; it encodes embed.batch_size of them at once

# The encoder that this worker process used last, by the id of its object.
_cache: dict[str, Encoder] = {}


def embed_images(paths: Mapping[str, str | None], encoder: Encoder, config: Config) -> pa.Table:
    """Embed images, given as id -> path (None: no file was found).

    Returns:
        Rows (key, status, feature) in their order, as `raycd.features` keeps them.
    """
    if not paths:
        return features.to_table([], [], np.zeros((0, encoder.dim), np.float32))
    columns = {"key": list(paths), "path": list(paths.values())}
    table = pa.table({name: pa.array(own, pa.string()) for name, own in columns.items()})
    workers = cluster.fitting(
        config.compute.embed_workers, cluster.worker_resources(config.compute)
    )
    block = max(config.embed.batch_size, min(BLOCK, len(table) // (4 * workers)))
    blocks = datasets.blocks_of(table, block)
    shared = SharedEncoder(
        ray.put(encoder), config.embed.precision, cluster.threads_each(config.compute, workers)
    )
    steps: list[tuple[Any, dict[str, Any]]]
    if cluster.uses_gpu(config.compute):
        steps = [
            decoders(encoder, workers, config),
            (_EncodeImages, actors(shared, workers, config)),
        ]
    else:
        steps = [(_embed, tasks(shared, min(workers, len(blocks)), config))]
    found = pa.concat_tables(list(datasets.mapped("embed images", "images", blocks, *steps)))
    rows = {key: row for row, key in enumerate(found["key"].to_pylist())}
    return found.take([rows[key] for key in paths])


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


def tasks(shared: SharedEncoder, workers: int, config: Config) -> dict[str, Any]:
    """Return how Ray Data runs tasks on CPUs."""
    return {
        "fn_kwargs": {"shared": shared, "config": config},
        "compute": ray.data.TaskPoolStrategy(size=workers),
        "num_cpus": config.compute.cpus_per_worker,
    }


def _embed(block: Batch, shared: SharedEncoder, config: Config) -> pa.Table:
    """Embed a block in batches of embed.batch_size, as a task."""
    embed, size = EmbedImages(shared.get("cpu"), config.data), config.embed.batch_size
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
