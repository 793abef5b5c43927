"""Mining on Ray Data: neighbours and candidates of `raycd.mine`, the same with any workers.

Each shard's normalised features are put into the object store once, by a task that reads them from
the files of `raycd.features`: they are never in this process. Tasks read them there without a copy,
and a worker process keeps the shard that it searches from one task to the next. So a worker
maps at most two shards: the one that it searches and the one of its queries, of which it reads only
the queries.

Shapes: N images, D feature size, P images of a shard, B queries, S keys, C candidates, T triplets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from raycd import mine as core
from raycd import progress
from raycd.config import ComputeConfig, MineConfig
from raycd.features.stored import Stored
from raycd.index import approximate
from raycd.mine.pools import Pool, Rows, TripletRows
from raycd.runtime import cluster
from raycd.runtime.datasets import blocks_of, mapped

SCORE_BLOCK = 1 << 15  # candidates measured by one task
LOADED = 1 << 15  # features normalised at once
TASKS = 2  # for each of several workers, at least: the others wait for the slowest task
PAIRS = 3_000_000_000  # of images that one task compares, at most: some seconds

# The shard that this worker process searched last, by the id of its object.
_cache: dict[str, core.NeighbourSearch] = {}


def find_neighbours(
    features: Stored,
    pools: Sequence[Pool],
    mine: MineConfig,
    compute: ComputeConfig,
) -> pa.Table:
    """Run `raycd.mine.find_neighbours` in tasks that search some batches of queries in one shard.

    Raises:
        DataError: A feature is not finite.
    """
    shards = core.make_shards(pools, features.dim, mine)
    stored = _stored(features, shards, compute)
    lists = core.Lists(pools, mine)
    workers = cluster.fitting(compute.mine_workers or cluster.machines(), _resources(mine, compute))
    blocks = [
        _block(visit, shards)
        for visit in core.visits(pools, shards, _task_size(pools, shards, mine, workers))
    ]
    if blocks:
        search = _searching(
            shards, stored, mine, compute, min(workers, len(blocks)), max(map(len, blocks))
        )
        for part in mapped("neighbours", "images", blocks, (_search, search)):
            _add(part, lists)
            del part
        del search
    del stored
    return lists.table()


def measured_recall(
    found: pa.Table,
    features: Stored,
    pools: Sequence[Pool],
    mine: MineConfig,
    compute: ComputeConfig,
    *,
    seed: int,
) -> tuple[float, int]:
    """Measure the share of the exact neighbours of `mine.recall_sample` queries in a table.

    Returns:
        The recall, and the number of queries that were compared.
    """
    exact = mine.model_copy(update={"index": "flat"})
    sample = core.sample(pools, mine.recall_sample, seed)
    count = sum(len(pool.queries_Q) for pool in sample)
    return core.recall(found, find_neighbours(features, sample, exact, compute)), count


def make_candidates(
    triplets: TripletRows,
    found: pa.Table,
    images: Stored,
    text_TD: NDArray[np.float32],
    *,
    encoder: str,
    compute: ComputeConfig,
) -> pa.Table:
    """Run `raycd.mine.make_candidates`, scored by at most `compute.mine_workers` tasks at once."""

    def score(_: object, text_TD: NDArray[np.float32], *rows_C: Rows) -> NDArray[np.float64]:
        return matching_scores(images, text_TD, *rows_C, compute=compute)

    nothing_0D = np.empty((0, text_TD.shape[1]), np.float32)  # the workers have the features
    return core.make_candidates(triplets, found, nothing_0D, text_TD, encoder=encoder, score=score)


def matching_scores(
    images: Stored,
    text_TD: NDArray[np.float32],
    reference_C: Rows,
    target_C: Rows,
    triplet_C: Rows,
    /,
    *,
    compute: ComputeConfig,
) -> NDArray[np.float64]:
    """Run `raycd.mine.matching_scores` in tasks of SCORE_BLOCK candidates."""
    score_C = np.empty(len(reference_C))
    if len(score_C) == 0:
        return score_C
    rows = pa.table(
        {
            "candidate": np.arange(len(score_C)),
            "reference": pa.array(reference_C),
            "target": pa.array(target_C),
            "triplet": pa.array(triplet_C),
        }
    )
    blocks = blocks_of(rows, SCORE_BLOCK)
    whole = ray.remote(num_cpus=compute.cpus_per_worker)(_all)
    image_ND = whole.remote(images)
    resources = {"CPU": compute.cpus_per_worker}
    workers = cluster.fitting(compute.mine_workers or cluster.cpus(), resources)
    measure = {
        "batch_format": "pyarrow",
        "compute": ray.data.TaskPoolStrategy(size=min(workers, len(blocks))),
        "num_cpus": compute.cpus_per_worker,
        "fn_kwargs": {"images": image_ND, "texts": ray.put(text_TD)},
    }
    for part in mapped("matching scores", "candidates", blocks, (_score, measure)):
        score_C[part["candidate"].to_numpy()] = part["score"].to_numpy()
    return score_C


def _stored(
    features: Stored, shards: Sequence[core.Shard], compute: ComputeConfig
) -> list[ray.ObjectRef[Any]]:
    """Put each shard's normalised features and its rows into the object store."""
    _ = features.starts  # counted once, here: they travel with it
    load = ray.remote(num_cpus=compute.cpus_per_worker, num_returns=2)(_load)
    given = ray.put(features)
    loaded: list[Any] = [load.remote(given, shard.rows_P) for shard in shards]
    ray.get([done for _, done in loaded])  # raises what a task has raised
    return [unit for unit, _ in loaded]


def _load(features: Stored, rows_P: Rows) -> tuple[tuple[NDArray[np.float32], Rows], bool]:
    """Read the features of a shard and normalise them, as a task."""
    image_PD = features.rows(rows_P)
    for start in range(0, len(rows_P), LOADED):  # in place: there is no third copy
        own = slice(start, start + LOADED)
        image_PD[own] = core.normalise(image_PD[own], numbers=rows_P[own])
    return (image_PD, rows_P), True


def _all(images: Stored) -> NDArray[np.float32]:
    """Read all features, as a task."""
    found: NDArray[np.float32] = images.features().values.numpy()
    return found


def _block(visit: core.Visit, shards: Sequence[core.Shard]) -> pa.Table:
    """Return a visit as rows that Ray Data gives to one task."""
    size = len(visit.rows_B)
    row_B = shards[visit.home].rows_P.searchsorted(visit.rows_B)
    columns = {
        "shard": pa.repeat(pa.scalar(visit.shard, pa.int64()), size),
        "home": pa.repeat(pa.scalar(visit.home, pa.int64()), size),
        "query": visit.query_B,
        "row": pa.array(row_B, pa.int32()),
    }
    return pa.table(columns)


def _runs(ends: NDArray[np.bool_]) -> list[slice]:
    """Return runs of rows; `ends` tells of each row but the last whether a run ends with it."""
    starts = [0, *(np.flatnonzero(ends) + 1).tolist()]
    return [slice(*run) for run in zip(starts, [*starts[1:], len(ends) + 1], strict=True)]


def _task_size(
    pools: Sequence[Pool], shards: Sequence[core.Shard], mine: MineConfig, workers: int
) -> int:
    """Return the query images of one task: many, for Ray Data takes 0.2 s between two tasks."""
    visits = sum(len(pools[shard.pool].queries_Q) for shard in shards if shard.found)
    largest = max((len(shard.rows_P) for shard in shards), default=1)
    share = -(-visits // (TASKS * workers)) if workers > 1 else visits
    return max(mine.batch_size, min(share, PAIRS // largest))


def _on_gpu(mine: MineConfig, compute: ComputeConfig) -> bool:
    """Return whether FAISS searches on GPUs: faiss-gpu is installed and the workers get them."""
    return mine.index == "flat" and core.FAISS_GPU and cluster.uses_gpu(compute)


def _resources(mine: MineConfig, compute: ComputeConfig) -> dict[str, float]:
    if _on_gpu(mine, compute):
        return cluster.worker_resources(compute)
    return {"CPU": compute.cpus_per_worker}


def _searching(
    shards: Sequence[core.Shard],
    stored: Sequence[ray.ObjectRef[Any]],
    mine: MineConfig,
    compute: ComputeConfig,
    workers: int,
    largest: int,
) -> dict[str, Any]:
    """Return how Ray Data runs the searching tasks, of blocks of at most `largest` rows."""
    resources = _resources(mine, compute)
    indexes: list[ray.ObjectRef[Any] | None] = [None] * len(stored)
    if mine.index != "flat":
        progress.say(f"building {mine.index} of {sum(shard.found for shard in shards)} shards")
        build = ray.remote(num_cpus=compute.cpus_per_worker)(_build)
        indexes = [
            build.remote(images, mine) if s.found else None
            for s, images in zip(shards, stored, strict=True)
        ]
    return {
        "batch_format": "pyarrow",
        "compute": ray.data.TaskPoolStrategy(size=workers),
        "num_cpus": resources["CPU"],
        # With GPUs Ray Data requires a number of rows, and splits and joins blocks to it.
        **({"num_gpus": resources["GPU"], "batch_size": largest} if "GPU" in resources else {}),
        "fn_kwargs": {
            "stored": list(zip(stored, indexes, strict=True)),
            "mine": mine,
            "threads": cluster.threads(compute, -(-workers // cluster.machines())),
            "gpu": "GPU" in resources,
        },
    }


def _build(shard: tuple[NDArray[np.float32], Rows], mine: MineConfig) -> NDArray[np.uint8]:
    """Build the index of a shard, as a task."""
    return approximate.build(shard[0], mine)


def _search(
    block: pa.Table,
    stored: Sequence[tuple[ray.ObjectRef[Any], ray.ObjectRef[Any] | None]],
    mine: MineConfig,
    threads: int,
    gpu: bool,
) -> pa.Table:
    """Search the visits of a block, or parts of visits, as a task."""
    shard_B, home_B, row_B = (block[name].to_numpy() for name in ("shard", "home", "row"))
    keys = []
    for own in _runs((np.diff(shard_B) != 0) | (np.diff(home_B) != 0)):
        unit_PD, rows_P = ray.get(stored[home_B[own.start]][0])
        shard, index = stored[shard_B[own.start]]
        searcher = _searcher(shard, index, mine, threads, gpu)
        keys.append(searcher(rows_P[row_B[own]], unit_PD, row_B[own]))
    key_BS = np.concatenate(keys)
    columns = [
        block["shard"].combine_chunks(),
        block["query"].combine_chunks(),
        pa.FixedSizeListArray.from_arrays(pa.array(key_BS.ravel()), key_BS.shape[1]),
    ]
    return pa.table(columns, names=["shard", "query", "keys"])


def _searcher(
    shard: ray.ObjectRef[Any],
    index: ray.ObjectRef[Any] | None,
    mine: MineConfig,
    threads: int,
    gpu: bool,
) -> core.NeighbourSearch:
    name = f"{shard.hex()} {mine.model_dump_json()} {threads}"
    if name not in _cache:
        _cache.clear()
        unit_PD, rows_P = ray.get(shard)
        nearest = core.on_gpu(unit_PD) if gpu else None
        if index is not None:
            nearest = approximate.Opened(ray.get(index), mine)
        _cache[name] = core.NeighbourSearch(unit_PD, rows_P, mine, nearest, threads=threads)
    return _cache[name]


def _add(part: pa.Table, lists: core.Lists) -> None:
    """Add what a task found, shard by shard: a query may occur in several of them."""
    shard_B, query_B, flat = (part[name].combine_chunks() for name in ("shard", "query", "keys"))
    key_BS = flat.flatten().to_numpy().reshape(len(part), -1)
    for own in _runs(np.diff(shard_B.to_numpy()) != 0):
        lists.add(query_B.to_numpy()[own], key_BS[own])


def _score(rows: pa.Table, images: ray.ObjectRef[Any], texts: ray.ObjectRef[Any]) -> pa.Table:
    score = core.matching_scores(
        ray.get(images),
        ray.get(texts),
        rows["reference"].to_numpy(),
        rows["target"].to_numpy(),
        rows["triplet"].to_numpy(),
    )
    return pa.table({"candidate": rows["candidate"], "score": pa.array(score)})
