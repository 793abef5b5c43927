"""Embedding on Ray Data into shards (`raycd.features.shards`), which the workers write themselves.

The driver knows which shards there are to do, and gets the number of their rows: no feature, no
picture and, of `embed_source`, no path passes through it. A shard that is there is not done again.
Its rows and their order are those of the table, whatever the workers do and in whatever order.

On CPUs a task decodes and encodes a shard. With GPUs an actor encodes it, while tasks on the
cluster's CPUs decode some batches ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from raycd import features, progress
from raycd.config import Compile, Config, DataConfig
from raycd.data import sources
from raycd.data.folder import absolute
from raycd.errors import ConfigError
from raycd.features import shards
from raycd.features.rows import Batch, Rows, TableRows, TarRows, write_table
from raycd.features.shards import ShardPlan
from raycd.features.stored import Stored
from raycd.model.compiling import IMAGES, encode_compiled
from raycd.model.embed import Batch as Encoded
from raycd.model.embed import ComposeQueries, DecodeImages, EmbedTexts, EncodeImages, overlapped
from raycd.model.encoder import Encoder
from raycd.progress import Bar
from raycd.redact import logins, without_passwords
from raycd.run import alone
from raycd.runtime import cluster, datasets, precision
from raycd.runtime.embed.embedding import SharedEncoder, as_table

TASKS = 2000  # of Ray Data, at most: it keeps something of each


def embed_table(
    uri: str, unit: str, table: pa.Table, encoder: Encoder, config: Config, *, earlier: str = ""
) -> Stored:
    """Embed a table into the folder or URI `uri`, where the same embedding goes on.

    What another encoder has left there is done again: a stage that is trained twice has the same
    fingerprint, but not always the same weights.

    Args:
        unit: images, of a table (key, path; null: no file was found), texts, of a table (key), or
            queries that the encoder composes by itself, of a table (key, path, text).
        earlier: Folder of an embedding of this table, whose features are copied where they are of
            this encoder.
    """
    config = precision.settled(config)
    of = {"encoder": encoder.fingerprint(), "precision": config.embed.precision}
    if earlier:
        Stored.open(earlier).copy(uri, of, len(table))
    rows, plan = planned(uri, table, of, config)
    return _embed(uri, unit, plan, rows, encoder, config)


def planned(
    uri: str,
    table: pa.Table,
    of: Mapping[str, Any],
    config: Config,
    *,
    most: int | None = None,
    begin: Callable[[str, ShardPlan], None] = shards.begin,
) -> tuple[TableRows, ShardPlan]:
    """Write a table and how it is cut, unless its shards are `of` the same already.

    Args:
        most: Rows of a shard.
        begin: Writes the plan.
    """
    plan = shards.read_plan(uri)
    hidden = logins(config.data.root) if "path" in table.column_names else {}
    # Always: where a run was moved, the same images have other paths
    write_table(uri, [table], table.schema, hidden)
    if plan is None or (plan.of, plan.rows) != (of, len(table)):
        plan = _plan(len(table), of, config, most)
        begin(uri, plan)
    return _table_rows(uri, plan, hidden), plan


def embed_source(uri: str, source: str, encoder: Encoder, config: Config) -> Stored:
    """Embed the pictures of a source (`raycd.data.sources`) into the folder or URI `uri`.

    What the source names is listed once, by a task; a folder that is complete stays as it is.

    Raises:
        ConfigError: The folder has the features of another source or encoder, or another job works
            on it.
        DataError: There are no pictures, or a table is malformed.
    """

    def refused(holder: str) -> ConfigError:
        return ConfigError(
            f"the folder {uri} is in use",
            got=f"{holder} embeds into it",
            do="wait for it, or give another --out",
        )

    with alone(uri, refused):  # two plans in one folder would mix their shards
        return _embed_source(uri, source, encoder, config)


def _embed_source(uri: str, source: str, encoder: Encoder, config: Config) -> Stored:
    config = precision.settled(config)
    tars, root = sources.tar_files(source), config.data.root and absolute(config.data.root)
    hidden = logins(source, root)
    of: dict[str, Any] = {
        "source": without_passwords(source),
        "root": without_passwords(root),
        "encoder": encoder.fingerprint(),
        "precision": config.embed.precision,
        "max_pixels": config.data.max_pixels,
        "min_side": config.data.min_side,
        "tars": [without_passwords(tar) for tar in tars],
    }
    plan = shards.read_plan(uri)
    if plan is not None and plan.of != of:
        raise ConfigError(
            f"the folder {uri} has the features of something else",
            got=_differing(plan.of, of),
            expected=_differing(of, plan.of),
            do="give another --out, or delete that folder",
        )
    if plan is None:
        if tars:
            plan = ShardPlan(len(tars), of=of)
        else:
            listed = ray.remote(num_cpus=config.compute.cpus_per_worker)(_list)
            plan = _plan(ray.get(listed.remote(uri, source, root)), of, config)
        shards.begin(uri, plan)
    rows: Rows = TarRows(tars) if tars else _table_rows(uri, plan, hidden)
    return _embed(uri, "images", plan, rows, encoder, config)


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    found = (f"{key} = {value}" for key, value in one.items() if value != other.get(key))
    return ", ".join(found)[:500]


def _list(uri: str, source: str, root: str) -> int:
    """Write the table of a source's pictures, as a task; return their number."""
    found = sources.blocks(source, root)
    return write_table(uri, found, sources.SCHEMA, logins(source, root))


def _plan(rows: int, of: Mapping[str, Any], config: Config, most: int | None = None) -> ShardPlan:
    return ShardPlan.of_rows(rows, config.embed.batch_size, 4 * _workers(config), of, most=most)


def _table_rows(uri: str, plan: ShardPlan, hidden: Mapping[str, str]) -> TableRows:
    assert plan.shard_rows is not None, "it is the plan of a table"
    return TableRows(uri, plan.shard_rows, hidden)


def _workers(config: Config) -> int:
    return cluster.fitting(config.compute.embed_workers, cluster.worker_resources(config.compute))


def _ahead(workers: int, config: Config) -> int:
    """Return the batches that tasks decode ahead for each worker on a GPU.

    None without a free CPU: an actor keeps its own while it waits, and the tasks would never start.
    """
    free = cluster.cpus() - workers * config.compute.cpus_per_worker
    return max(2, int(free / workers)) if free >= 1 else 0


def _embed(
    uri: str, unit: str, plan: ShardPlan, rows: Rows, encoder: Encoder, config: Config
) -> Stored:
    """Do the shards that are not there, and open all of them."""
    complete(f"embed {unit}", partial(ShardWork, uri, unit, rows), uri, unit, plan, encoder, config)
    return Stored.open(uri)


def complete(
    stage: str,
    shard: Callable[..., ShardWork],
    uri: str,
    unit: str,
    plan: ShardPlan,
    encoder: Encoder,
    config: Config,
) -> None:
    """Do the shards that are not there.

    Args:
        stage: What the progress shows.
        shard: Makes the work on one of them of the last five arguments of a `ShardWork`.
    """
    there = shards.parts(uri)
    todo = [number for number in range(plan.shards) if number not in there]
    if not todo:
        return
    workers, on_gpu = _workers(config), cluster.uses_gpu(config.compute)
    shared = SharedEncoder(
        ray.put(encoder), config.embed.precision, cluster.threads_each(config.compute, workers)
    )
    ahead = _ahead(workers, config) if on_gpu and unit == "images" else 0
    compiled = config.embed.compile
    if compiled == "auto" and not (on_gpu and (plan.rows or 0) >= IMAGES * workers):
        compiled = False
    work = shard(shared, config.data, config.embed.batch_size, ahead, compiled)
    size = -(-len(todo) // TASKS)
    blocks = datasets.blocks_of(pa.table({"shard": todo}), size)
    step: tuple[Callable[..., Any], dict[str, Any]] = (
        _write,
        {
            "fn_kwargs": {"work": work},
            "compute": ray.data.TaskPoolStrategy(size=min(workers, len(blocks))),
            "num_cpus": config.compute.cpus_per_worker,
        },
    )
    if on_gpu:
        step = (
            _Writer,
            {
                "fn_constructor_args": (work,),
                "batch_size": size,
                "compute": ray.data.ActorPoolStrategy(size=min(workers, len(blocks))),
                "num_cpus": config.compute.cpus_per_worker,
                "num_gpus": config.compute.gpus_per_worker,
            },
        )
    total = None
    if plan.rows is not None and plan.shard_rows is not None:
        total = sum(min(plan.shard_rows, plan.rows - n * plan.shard_rows) for n in todo)
    told: set[str] = set()
    with Bar(stage, total=total, unit=unit) as bar:
        for written in datasets.results(blocks, step):
            bar.advance(sum(written["rows"].to_pylist()))
            for text in {text for texts in written["said"].to_pylist() for text in texts} - told:
                told.add(text)  # each worker says it
                progress.say(f"{stage}: {text}")


@dataclass(frozen=True)
class ShardWork:
    """The work on a shard: read its rows, encode them in batches, write them."""

    uri: str
    unit: str
    rows: Rows
    encoder: SharedEncoder
    data: DataConfig
    batch_size: int
    ahead: int
    """Batches that tasks decode before they are needed; 0: they are decoded here."""
    compiled: Compile = False
    """Encode compiled; by auto only where that is possible."""

    def __call__(self, number: int, device: str) -> int:
        """Write a shard; return the number of its rows."""
        encoder = self.encoder.get(device)
        batches = self.rows.batches(number, self.batch_size)
        if self.unit == "images":
            batches = self._decoded(DecodeImages(encoder.preprocess.to_dict(), self.data), batches)
        return self.write(number, overlapped(self.encoding(encoder), batches), encoder)

    def encoding(self, encoder: Encoder) -> Callable[[Batch], Encoded]:
        """Return what encodes a batch; images are decoded before."""
        if self.compiled and self.unit != "queries":
            encode_compiled(encoder, must=self.compiled is True)
        if self.unit == "images":
            return EncodeImages(encoder)
        return EmbedTexts(encoder) if self.unit == "texts" else ComposeQueries(encoder, self.data)

    def write(self, number: int, encoded: Iterator[Encoded], encoder: Encoder) -> int:
        """Write the batches of a shard; return the number of its rows."""
        empty = features.to_table([], [], np.zeros((0, encoder.dim), np.float32))
        table = pa.concat_tables([empty, *map(as_table, encoded)])
        shards.write(self.uri, number, table)
        return len(table)

    def _decoded(self, decode: DecodeImages, batches: Iterator[Batch]) -> Iterator[Batch]:
        if self.ahead == 0:
            yield from map(decode, batches)
            return
        remote, waiting = ray.remote(num_cpus=1)(_decode), deque[Any]()
        shared = ray.put(decode)
        for batch in batches:
            waiting.append(remote.remote(shared, batch))
            if len(waiting) > self.ahead:
                yield ray.get(waiting.popleft())
        while waiting:
            yield ray.get(waiting.popleft())


def _decode(decode: DecodeImages, batch: Batch) -> Batch:
    return decode(batch)


def _write(block: Batch, work: ShardWork, device: str = "cpu") -> pa.Table:
    """Write the shards that a block names, as a task; return their rows, and what was said."""
    said: list[str] = []
    with progress.heard(said.append):
        rows = sum(work(int(number), device) for number in block["shard"])
    texts = pa.array([said], pa.list_(pa.string()))
    return pa.table({"rows": pa.array([rows], pa.int64()), "said": texts})


class _Writer:
    """An actor on a GPU."""

    def __init__(self, work: ShardWork) -> None:
        self.work = work

    def __call__(self, block: Batch) -> pa.Table:
        return _write(block, self.work, "cuda")
