"""Embedding on Ray Data (eq. 8): all images and all texts through a frozen encoder, once.

On processors an actor decodes and encodes; with GPUs, tasks decode on processors and actors encode on GPUs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from raycd import features
from raycd.config import Config, DataConfig, Precision
from raycd.embed import Batch, DecodeImages, EmbedImages, EmbedTexts, EncodeImages, frozen_encoder
from raycd.model.encoder import Encoder
from raycd.run import local_copy
from raycd.runtime import cluster, datasets

BLOCK = 1024  # most rows that an actor takes at a time; it encodes embed.batch_size of them at once


def embed_images(paths: Mapping[str, str | None], encoder: str, config: Config) -> pa.Table:
    """Image id -> path (None: no file was found) gives rows (key, status, feature) as `raycd.features` keeps them.

    `encoder` is the folder or URI of a saved encoder.
    """
    if not paths:
        return _nothing(encoder)
    table = pa.table({"key": pa.array(list(paths), pa.string()), "path": pa.array(list(paths.values()), pa.string())})
    if cluster.uses_gpu(config.compute):
        preprocess = frozen_encoder(local_copy(encoder), "fp32", "cpu").preprocess.to_dict()
        decode = {
            "fn_constructor_args": (preprocess, config.data),
            "compute": ray.data.ActorPoolStrategy(min_size=1, max_size=_decoders(config)),
            "num_cpus": 1,
        }
        steps = [(_Decode, decode), (_Encode, _actors(encoder, config, len(table)))]
    else:
        steps = [(_DecodeAndEncode, _actors(encoder, config, len(table)))]
    return _collect("embed images", "images", table, config, steps)


def embed_texts(texts: Sequence[str], encoder: str, config: Config) -> pa.Table:
    """Distinct texts give rows (key, status, feature)."""
    if not texts:
        return _nothing(encoder)
    table = pa.table({"key": pa.array(list(texts), pa.string())})
    return _collect("embed texts", "texts", table, config, [(_Texts, _actors(encoder, config, len(table)))])


def _nothing(encoder: str) -> pa.Table:
    """No rows: Ray Data would lose the columns with them."""
    return features.to_table([], [], np.zeros((0, frozen_encoder(local_copy(encoder), "fp32", "cpu").dim), np.float32))


def _collect(
    stage: str, unit: str, table: pa.Table, config: Config, steps: Iterable[tuple[Any, dict[str, Any]]]
) -> pa.Table:
    """The rows in the order of `table`, whatever the order in which the workers finish."""
    batch = config.embed.batch_size
    block = max(batch, min(BLOCK, len(table) // (4 * config.compute.embed_workers)))
    steps = [(what, {"batch_size": batch, **how}) for what, how in steps]
    parts = list(datasets.mapped(stage, unit, datasets.blocks_of(table, block), *steps))
    found = pa.concat_tables(parts)
    place = {key: row for row, key in enumerate(found["key"].to_pylist())}
    return found.take([place[key] for key in table["key"].to_pylist()])


def _actors(encoder: str, config: Config, rows: int) -> dict[str, Any]:
    """How Ray Data runs the actors that encode."""
    most = -(-rows // config.embed.batch_size)
    resources = cluster.worker_resources(config.compute)
    workers = min(cluster.fitting(config.compute.embed_workers, resources), most)
    return {
        "fn_constructor_args": (encoder, config.embed.precision, config.data, cluster.threads(config.compute, workers)),
        "compute": ray.data.ActorPoolStrategy(size=workers),
        "num_cpus": resources["CPU"],
        "num_gpus": resources.get("GPU", 0),
    }


def _decoders(config: Config) -> int:
    """Most decoding actors: the CPUs that the encoding actors leave, at least one."""
    cpus = float(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
    return max(1, int(cpus - config.compute.embed_workers * config.compute.cpus_per_worker))


def _frozen(folder: str, precision: Precision, threads: int) -> Encoder:
    torch.set_num_threads(threads)
    return frozen_encoder(local_copy(folder), precision, "cuda" if torch.cuda.is_available() else "cpu")


def _table(batch: Batch) -> pa.Table:
    return features.to_table(list(batch["key"]), list(batch["status"]), batch["feature"])


class _Decode(DecodeImages):
    """An actor on a processor."""


class _Encode:
    """An actor on an accelerator."""

    def __init__(self, folder: str, precision: Precision, data: DataConfig, threads: int) -> None:
        self.step = EncodeImages(_frozen(folder, precision, threads))

    def __call__(self, batch: Batch) -> pa.Table:
        return _table(self.step(batch))


class _DecodeAndEncode:
    """An actor that does both."""

    def __init__(self, folder: str, precision: Precision, data: DataConfig, threads: int) -> None:
        self.step = EmbedImages(_frozen(folder, precision, threads), data)

    def __call__(self, batch: Batch) -> pa.Table:
        return _table(self.step(batch))


class _Texts:
    """An actor that encodes texts."""

    def __init__(self, folder: str, precision: Precision, data: DataConfig, threads: int) -> None:
        self.step = EmbedTexts(_frozen(folder, precision, threads))

    def __call__(self, batch: Batch) -> pa.Table:
        return _table(self.step(batch))
