"""Mining in tasks of Ray: neighbours and candidates of `raycd.mine`, the same with any workers.

Each shard's normalised features, and the structure that searches them, are put into the object
store once, by a task that reads them from the files of `raycd.features`: they are never in this
process. A task reads the features of its queries once, and searches one shard of their pool after
the other there, without a copy. As many tasks are submitted as work at once.

Shapes: N images, D feature size, B queries, S keys, C candidates, T triplets.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
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
QUERIES = {"cpu": 16384, "cuda": 1 << 18}


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
    threads = cluster.threads_each(compute, workers)
    device, total = "cuda" if "GPU" in resources else "cpu", sum(len(p.queries_Q) for p in asked)
    most = max(QUERIES[device], threads * mine.batch_size)
    size = max(1, min(most, -(-total // (TASKS * workers))))
    stored = ray.put(features)
    loaded = _loaded(stored, shards, features.dim, mine, compute)
    find: Any = ray.remote(num_cpus=resources["CPU"], num_gpus=resources.get("GPU", 0))(_find)
    calls = [
        (pool.queries_Q[start : start + size], stored, loaded[pool.name], mine, threads, device)
        for pool in asked
        for start in range(0, len(pool.queries_Q), size)
    ]
    with Bar("neighbours", total=total, unit="images") as bar:
        return to_table(pools, _each(find, calls, workers, bar), mine)


def matching_scores(
    images: Stored, text_TD: NDArray[np.float32], *rows_C: Rows, compute: ComputeConfig
) -> NDArray[np.float64]:
    """Run `raycd.mine.matching_scores` in tasks of SCORE_BLOCK candidates.

    The features of all images are in the object store: any task may need any of them.
    """
    count, resources = len(rows_C[0]), {"CPU": compute.cpus_per_worker}
    if not count:
        return np.empty(0)
    whole: Any = ray.remote(num_cpus=compute.cpus_per_worker)(_all)
    measure: Any = ray.remote(num_cpus=compute.cpus_per_worker)(core.matching_scores)
    stored, texts = whole.remote(images), ray.put(text_TD)
    calls = [
        (stored, texts, *(row_C[start : start + SCORE_BLOCK] for row_C in rows_C))
        for start in range(0, count, SCORE_BLOCK)
    ]
    workers = cluster.fitting(compute.mine_workers or cluster.cpus(), resources)
    with Bar("matching scores", total=count, unit="candidates") as bar:
        return np.concatenate(_each(measure, calls, workers, bar))


def _each(task: Any, calls: Sequence[tuple[Any, ...]], most: int, bar: Bar) -> list[Any]:
    """Return what a task answers to each of the calls, `most` of which run at a time.

    Where one fails, no other is begun. Those that run are left to end: Ray 2.60 ends the whole
    process, without an error that Python sees, where `ray.cancel` meets a task that is just being
    handed to a worker (ray-project/ray, pull request 54798, mends half of that).
    """
    found, running, left = [None] * len(calls), dict[Any, int](), enumerate(calls)
    while True:
        for number, given in islice(left, most - len(running)):
            running[task.remote(*given)] = number
        if not running:
            return found
        [done], _ = ray.wait(list(running))
        answer = found[running.pop(done)] = ray.get(done)
        bar.advance(len(answer))


def _loaded(
    features: Any, shards: Sequence[Pool], dim: int, mine: MineConfig, compute: ComputeConfig
) -> dict[str, list[Any]]:
    """Have every shard put into the object store; return references to those of each pool.

    As many are loaded at a time as a machine has memory for beside the store.
    """
    load: Any = ray.remote(num_cpus=compute.cpus_per_worker, num_returns=2)(_load)
    loaded, done = defaultdict[str, list[Any]](list), []
    for shard in shards:
        memory = min(cluster.memory(), len(shard.rows_P) * row_bytes(dim, mine))
        ready, end = load.options(memory=memory).remote(features, shard.rows_P, mine)
        loaded[shard.name].append(ready)
        done.append(end)
    ray.get(done)  # raises what a task has raised
    return loaded


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
