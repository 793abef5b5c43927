"""Mining in tasks of Ray: neighbours and candidates of `raycd.mine`, the same with any workers.

Each shard's normalised features, and the structure that searches them, are put into the object
store once, by a task that reads them from the files of `raycd.features`: they are never in this
process. Tasks search them there without a copy, and read the features of their own queries.

Shapes: N images, D feature size, B queries, S keys, C candidates, T triplets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from raycd import mine as core
from raycd import progress
from raycd.config import ComputeConfig, MineConfig
from raycd.features.stored import Stored
from raycd.index import approximate
from raycd.mine.neighbours import merge, normalise, visits
from raycd.mine.pools import Pool, Rows
from raycd.mine.search import FAISS_GPU, NeighbourSearch, flat, on_gpu
from raycd.runtime import cluster

SCORE_BLOCK = 1 << 15  # candidates measured by one task
TASKS = 2  # for each worker, at least: the others wait for the slowest task

What = TypeVar("What")
# A shard: normalised features, rows, and HNSW or IVF where `mine.index` names one
Loaded = tuple[NDArray[np.float32], Rows, NDArray[np.uint8] | None]


def find_neighbours(
    features: Stored, pools: Sequence[Pool], mine: MineConfig, compute: ComputeConfig
) -> pa.Table:
    """Run `raycd.mine.find_neighbours` in tasks that search some queries in one shard.

    Raises:
        DataError: A feature is not finite.
    """
    shards = core.make_shards(pools, features.dim, mine)
    _ = features.starts  # counted once, here: they travel with it
    stored, resources = ray.put(features), {"CPU": compute.cpus_per_worker}
    if mine.index == "flat" and FAISS_GPU:
        resources = cluster.worker_resources(compute)
    workers = cluster.fitting(compute.mine_workers or cluster.machines(), resources)
    threads = cluster.threads(compute, -(-workers // cluster.machines()))
    load: Any = ray.remote(num_cpus=compute.cpus_per_worker)(_load)
    search: Any = ray.remote(num_cpus=resources["CPU"], num_gpus=resources.get("GPU", 0))(_search)
    if mine.index != "flat":
        progress.say(f"building {mine.index} of {len(shards)} shards")
    loaded = [load.remote(stored, shard.rows_P, mine) for shard in shards]
    total = sum(len(shard.queries_Q) for shard in shards)
    given = (mine, threads, "GPU" in resources)

    def tasks() -> Iterator[tuple[Any, Pool]]:
        for shard in shards:
            images = loaded.pop(0)  # out of the store after the last visit
            for visit in visits(shard, mine, -(-total // (TASKS * workers))):
                yield search.remote(images, stored, visit.queries_Q, *given), visit

    return merge(_done(tasks(), workers), pools, mine, total=total)


def searched(
    found: pa.Table,
    features: Stored,
    pools: Sequence[Pool],
    mine: MineConfig,
    compute: ComputeConfig,
    *,
    seed: int,
) -> core.Searched:
    """Return the record of a search, with the recall of HNSW and IVF.

    It is that of `mine.recall_sample` queries, which are searched exactly, too.
    """
    shards, recall, sample = core.make_shards(pools, features.dim, mine), 1.0, list[Pool]()
    if mine.index != "flat":
        sample = core.sample(pools, mine.recall_sample, seed)
        exact = mine.model_copy(update={"index": "flat"})
        recall = core.recall(found, find_neighbours(features, sample, exact, compute))
    queries = sum(len(pool.queries_Q) for pool in sample)
    return core.searched(shards, features.dim, mine, recall=recall, sample=queries)


def matching_scores(
    images: Stored,
    text_TD: NDArray[np.float32],
    *rows_C: Rows,
    compute: ComputeConfig,
) -> NDArray[np.float64]:
    """Run `raycd.mine.matching_scores` in tasks of SCORE_BLOCK candidates.

    The features of all images are in the object store: any task may need any of them.
    """
    score_C = np.empty(len(rows_C[0]))
    whole: Any = ray.remote(num_cpus=compute.cpus_per_worker)(_all)
    measure: Any = ray.remote(num_cpus=compute.cpus_per_worker)(core.matching_scores)
    workers = cluster.fitting(
        compute.mine_workers or cluster.cpus(), {"CPU": compute.cpus_per_worker}
    )

    def tasks() -> Iterator[tuple[Any, slice]]:
        starts = range(0, len(score_C), SCORE_BLOCK)
        if starts:
            image_ND, texts = whole.remote(images), ray.put(text_TD)
        for start in starts:
            own = slice(start, start + SCORE_BLOCK)
            yield measure.remote(image_ND, texts, *(rows[own] for rows in rows_C)), own

    with progress.Bar("matching scores", total=len(score_C), unit="candidates") as bar:
        for own, score in _done(tasks(), workers):
            score_C[own] = score
            bar.advance(len(score))
    return score_C


def _done(tasks: Iterator[tuple[Any, What]], most: int) -> Iterator[tuple[What, Any]]:
    """Yield what each task is for and its result, in any order; at most `most` run at once."""
    running = dict(islice(tasks, most))
    while running:
        [done], _ = ray.wait(list(running))
        what = running.pop(done)
        running.update(islice(tasks, 1))
        yield what, ray.get(done)


def _load(features: Stored, rows_P: Rows, mine: MineConfig) -> Loaded:
    """Read the features of a shard, normalise them, and build what `mine.index` names: a task."""
    unit_PD = normalise(features.rows(rows_P), rows_P)
    return unit_PD, rows_P, None if mine.index == "flat" else approximate.build(unit_PD, mine)


def _all(images: Stored) -> NDArray[np.float32]:
    """Read all features, as a task."""
    found: NDArray[np.float32] = images.features().values.numpy()
    return found


def _search(
    shard: Loaded, features: Stored, rows_B: Rows, mine: MineConfig, threads: int, gpu: bool
) -> NDArray[np.int64]:
    """Return the keys (B, S + 1) that one shard gives for these queries, as a task."""
    unit_PD, rows_P, index = shard
    if index is None:
        nearest = on_gpu(unit_PD) if gpu else flat(unit_PD)
    else:
        nearest = approximate.Opened(index, mine)
    search = NeighbourSearch(unit_PD, rows_P, mine, nearest, threads)
    return search(rows_B, normalise(features.rows(rows_B), rows_B))
