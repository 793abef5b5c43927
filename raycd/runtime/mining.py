"""Mining on Ray Data: neighbours and candidates of `raycd.mine`, the same with any workers.

Each shard's normalised features, and the structure that searches them, are put into the object
store once, by a task that reads them from the files of `raycd.features`: they are never in this
process. Tasks search them there without a copy, and read the features of their own queries.

Shapes: N images, D feature size, B queries, S keys, C candidates, T triplets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from raycd import mine as core
from raycd import progress
from raycd.config import ComputeConfig, MineConfig
from raycd.features.stored import Stored
from raycd.index import approximate
from raycd.mine.neighbours import merge, normalise, row_bytes, visits
from raycd.mine.pools import Pool, Rows
from raycd.mine.search import FAISS_GPU, Keys, NeighbourSearch, flat, on_gpu
from raycd.runtime import cluster, datasets

SCORE_BLOCK = 1 << 15  # candidates measured by one task
TASKS = 2  # for each worker, at least: the others wait for the slowest task

_ROWS = ("reference", "target", "triplet")  # of a candidate
# A shard: normalised features, rows, and HNSW or IVF where `mine.index` names one
Loaded = tuple[NDArray[np.float32], Rows, NDArray[np.uint8] | None]


def find_neighbours(
    features: Stored, pools: Sequence[Pool], mine: MineConfig, compute: ComputeConfig
) -> pa.Table:
    """Run `raycd.mine.find_neighbours` in tasks that search some queries in one shard.

    Raises:
        DataError: A feature is not finite.
    """
    shards = core.make_shards([p for p in pools if len(p.queries_Q)], features.dim, mine)
    _ = features.starts  # counted once, here: they travel with it
    resources = {"CPU": compute.cpus_per_worker}
    if mine.index == "flat" and FAISS_GPU:
        resources = cluster.worker_resources(compute)
    workers = cluster.fitting(compute.mine_workers or cluster.machines(), resources)
    total = sum(len(shard.queries_Q) for shard in shards)
    most = -(-total // (TASKS * workers))
    blocks = [
        pa.table({"shard": np.full(len(visit.queries_Q), number), "query": visit.queries_Q})
        for number, shard in enumerate(shards)
        for visit in visits(shard, mine, most)
    ]
    longest = max(map(len, blocks), default=1)
    if mine.index != "flat":
        progress.say(f"building {mine.index} of {len(shards)} shards")
    stored = ray.put(features)
    search: dict[str, Any] = {
        "batch_format": "pyarrow",
        "compute": ray.data.TaskPoolStrategy(size=min(workers, len(blocks)) or 1),
        "num_cpus": resources["CPU"],
        # With GPUs Ray Data requires a number of rows, and splits and joins blocks to it
        **({"num_gpus": resources["GPU"], "batch_size": longest} if "GPU" in resources else {}),
        "fn_kwargs": {
            "shards": _loaded(stored, shards, features.dim, mine, compute),
            "features": stored,
            "mine": mine,
            "threads": cluster.threads(compute, -(-workers // cluster.machines())),
            "gpu": "GPU" in resources,
        },
    }

    def found() -> Iterator[tuple[Pool, Keys]]:
        for part in datasets.results(blocks, (_search, search)) if blocks else ():
            for number, own in _by_shard(part):
                keys = own["keys"].combine_chunks()
                yield (
                    replace(shards[number], queries_Q=own["query"].to_numpy()),
                    keys.flatten().to_numpy().reshape(len(own), -1),
                )

    return merge(found(), pools, mine, total=total)


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
    if not len(score_C):
        return score_C
    columns = {"candidate": np.arange(len(score_C)), **dict(zip(_ROWS, rows_C, strict=True))}
    blocks = datasets.blocks_of(pa.table(columns), SCORE_BLOCK)
    resources = {"CPU": compute.cpus_per_worker}
    workers = cluster.fitting(compute.mine_workers or cluster.cpus(), resources)
    whole: Any = ray.remote(num_cpus=compute.cpus_per_worker)(_all)
    measure = {
        "batch_format": "pyarrow",
        "compute": ray.data.TaskPoolStrategy(size=min(workers, len(blocks))),
        "num_cpus": compute.cpus_per_worker,
        "fn_kwargs": {"images": whole.remote(images), "texts": ray.put(text_TD)},
    }
    for part in datasets.mapped("matching scores", "candidates", blocks, (_score, measure)):
        score_C[part["candidate"].to_numpy()] = part["score"].to_numpy()
    return score_C


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


def _load(features: Stored, rows_P: Rows, mine: MineConfig) -> tuple[Loaded, bool]:
    """Read the features of a shard, normalise them, and build what `mine.index` names: a task."""
    unit_PD = normalise(features.rows(rows_P), rows_P)
    index = None if mine.index == "flat" else approximate.build(unit_PD, mine)
    return (unit_PD, rows_P, index), True


def _all(images: Stored) -> NDArray[np.float32]:
    """Read all features, as a task."""
    found: NDArray[np.float32] = images.features().values.numpy()
    return found


def _by_shard(block: pa.Table) -> Iterator[tuple[int, pa.Table]]:
    """Yield the rows of each shard: Ray Data may cut blocks and join them."""
    for number in pc.unique(block["shard"]).to_pylist():
        yield number, block.filter(pc.equal(block["shard"], number)).combine_chunks()


def _search(
    block: pa.Table, shards: Sequence[Any], features: Any, mine: MineConfig, threads: int, gpu: bool
) -> pa.Table:
    """Add the keys (B, S + 1) that their shard gives for the queries of a block, as a task."""
    found, stored = [], ray.get(features)
    for number, own in _by_shard(block):
        unit_PD, rows_P, index = ray.get(shards[number])
        if index is None:
            nearest = on_gpu(unit_PD) if gpu else flat(unit_PD)
        else:
            nearest = approximate.Opened(index, mine)
        rows_B = own["query"].to_numpy()
        search = NeighbourSearch(unit_PD, rows_P, mine, nearest, threads)
        key_BS = search(rows_B, normalise(stored.rows(rows_B), rows_B))
        keys = pa.FixedSizeListArray.from_arrays(pa.array(key_BS.ravel()), key_BS.shape[1])
        found.append(own.append_column("keys", keys))
    return pa.concat_tables(found)


def _score(block: pa.Table, images: Any, texts: Any) -> pa.Table:
    """Measure the candidates of a block, as a task."""
    rows_C = (block[name].to_numpy() for name in _ROWS)
    score_C = core.matching_scores(ray.get(images), ray.get(texts), *rows_C)
    return pa.table({"candidate": block["candidate"], "score": pa.array(score_C)})
