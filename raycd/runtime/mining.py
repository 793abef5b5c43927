"""Mining in tasks of Ray: neighbours and candidates of `raycd.mine`, the same with any workers.

Each shard's normalised features, and the structure that searches them, are put into the object
store once, by a task that reads them from the files of `raycd.features`: they are never in this
process. A task reads the features of its queries once, and searches one shard of their pool after
the other there, without a copy. As many tasks are submitted as work at once.

Shapes: N images, D feature size, B queries, S keys, C candidates, T triplets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from raycd import mine as core
from raycd import progress
from raycd.config import ComputeConfig, MineConfig
from raycd.features.stored import Stored
from raycd.mine.neighbours import make_ready, normalise, row_bytes, to_table
from raycd.mine.pools import Pool, Rows
from raycd.mine.search import Keys, Shard, search
from raycd.progress import Bar
from raycd.runtime import cluster

SCORE_BLOCK = 1 << 15  # candidates measured by one task
TASKS = 2  # for each worker, at least: the others wait for the slowest task
# Most queries of a task, whose features it holds: on a GPU many, for it gets the shard anew
QUERIES = {"cpu": 4096, "cuda": 1 << 18}


def find_neighbours(
    features: Stored, pools: Sequence[Pool], mine: MineConfig, compute: ComputeConfig
) -> pa.Table:
    """Run `raycd.mine.find_neighbours` in tasks that search for some queries of one pool.

    Raises:
        DataError: A feature is not finite.
    """
    asked = [pool for pool in pools if len(pool.queries_Q)]
    shards = core.make_shards(asked, features.dim, mine)
    _ = features.starts  # counted once, here: they travel with it
    resources = {"CPU": compute.cpus_per_worker}
    if mine.index == "flat":
        resources = cluster.worker_resources(compute)
    else:
        progress.say(f"building {mine.index} of {len(shards)} shards")
    workers = cluster.fitting(compute.mine_workers or cluster.machines(), resources)
    threads = cluster.threads(compute, -(-workers // cluster.machines()))
    device, total = "cuda" if "GPU" in resources else "cpu", sum(len(p.queries_Q) for p in asked)
    most = max(QUERIES[device], threads * mine.batch_size)
    size = max(1, min(most, -(-total // (TASKS * workers))))
    stored = ray.put(features)
    loaded = _loaded(stored, shards, features.dim, mine, compute)
    given = [
        (
            pool.queries_Q[start : start + size],
            stored,
            [one for one, shard in zip(loaded, shards, strict=True) if shard.name == pool.name],
        )
        for pool in asked
        for start in range(0, len(pool.queries_Q), size)
    ]
    find: Any = ray.remote(num_cpus=resources["CPU"], num_gpus=resources.get("GPU", 0))(_find)
    calls = [(*each, mine, threads, device) for each in given]
    found = [np.empty((0, 0), np.int64)] * len(calls)
    with Bar("neighbours", total=total, unit="images") as bar:
        for number, key_BS in _each(find, calls, workers):
            found[number] = key_BS
            bar.advance(len(key_BS))
    return to_table(pools, found, mine)


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
    images: Stored, text_TD: NDArray[np.float32], *rows_C: Rows, compute: ComputeConfig
) -> NDArray[np.float64]:
    """Run `raycd.mine.matching_scores` in tasks of SCORE_BLOCK candidates.

    The features of all images are in the object store: any task may need any of them.
    """
    count, resources = len(rows_C[0]), {"CPU": compute.cpus_per_worker}
    score_C = np.empty(count)
    if not count:
        return score_C
    whole: Any = ray.remote(num_cpus=compute.cpus_per_worker)(_all)
    measure: Any = ray.remote(num_cpus=compute.cpus_per_worker)(core.matching_scores)
    stored, texts = whole.remote(images), ray.put(text_TD)
    parts = [slice(start, start + SCORE_BLOCK) for start in range(0, count, SCORE_BLOCK)]
    calls = [(stored, texts, *(row_C[own] for row_C in rows_C)) for own in parts]
    workers = cluster.fitting(compute.mine_workers or cluster.cpus(), resources)
    with Bar("matching scores", total=count, unit="candidates") as bar:
        for number, own_C in _each(measure, calls, workers):
            score_C[parts[number]] = own_C
            bar.advance(len(own_C))
    return score_C


def _each(task: Any, calls: Sequence[tuple[Any, ...]], most: int) -> Iterator[tuple[int, Any]]:
    """Call a task with each of the arguments, `most` at a time; yield (number, result) of each.

    Where one fails, or this process goes on without the others, they are cancelled.
    """
    running, left = dict[Any, int](), enumerate(calls)
    try:
        while True:
            for number, given in islice(left, most - len(running)):
                running[task.remote(*given)] = number
            if not running:
                return
            [done], _ = ray.wait(list(running))
            yield running.pop(done), ray.get(done)
    finally:
        for other in running:
            ray.cancel(other)


def _loaded(
    features: Any, shards: Sequence[Pool], dim: int, mine: MineConfig, compute: ComputeConfig
) -> list[Any]:
    """Have every shard put into the object store; return references to them.

    As many are loaded at a time as a machine has memory for beside the store.
    """
    load: Any = ray.remote(num_cpus=compute.cpus_per_worker, num_returns=2)(_load)
    most, each = cluster.memory(), row_bytes(dim, mine)
    loaded = [
        load.options(memory=min(most, len(shard.rows_P) * each)).remote(
            features, shard.rows_P, mine
        )
        for shard in shards
    ]
    ray.get([done for _, done in loaded])  # raises what a task has raised
    return [shard for shard, _ in loaded]


def _load(features: Stored, rows_P: Rows, mine: MineConfig) -> tuple[Shard, bool]:
    """Read the features of a shard, and make it ready: a task."""
    return make_ready(features.rows(rows_P), rows_P, mine), True


def _find(
    rows_B: Rows, features: Stored, shards: list[Any], mine: MineConfig, threads: int, device: str
) -> Keys:
    """Return the keys (B, S + 1) of queries in the shards of their pool: a task."""
    unit_BD = normalise(features.rows(rows_B), rows_B)
    return search(rows_B, unit_BD, map(ray.get, shards), mine, threads=threads, device=device)


def _all(images: Stored) -> NDArray[np.float32]:
    """Read all features: a task."""
    found: NDArray[np.float32] = images.features().values.numpy()
    return found
