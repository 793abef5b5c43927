"""Mining on Ray Data: `raycd.mine`'s neighbours and candidates, with equal results at any number of
blocks and workers.

Each shard's normalised features go into the object store once; tasks read them there without a
copy, and a worker process keeps the shard that it searches from one task to the next. So a worker
maps two shards at most: the one that it searches and the one that its queries come from, of which
it reads its queries only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from raycd import mine as core
from raycd import progress
from raycd.config import ComputeConfig, MineConfig
from raycd.index import approximate
from raycd.mine.pools import Pool, Rows, TripletRows
from raycd.runtime import cluster
from raycd.runtime.datasets import blocks_of, mapped

SCORE_BLOCK = 1 << 15  # candidates measured by one task
TASKS = (
    2  # searching tasks of each of several workers at least, so that none waits long for the last
)
PAIRS = 3_000_000_000  # most pairs of images that one task compares: some seconds

_held: dict[
    str, core.NeighbourSearch
] = {}  # the shard that this worker process searched last, by the id of its object


def find_neighbours(
    features_ND: NDArray[np.float32],
    pools: Sequence[Pool],
    mine: MineConfig,
    compute: ComputeConfig,
) -> pa.Table:
    """`raycd.mine.find_neighbours` by tasks that take some batches of query images to one shard at
    a time.

    Where the caller keeps no reference to the features, they are let go as soon as the workers have
    them.
    """
    shards = core.make_shards(pools, features_ND.shape[1], mine)
    stored = []
    for shard in shards:
        unit_PD = core.normalise(features_ND, shard.rows_P)
        if shard is shards[-1]:
            del features_ND  # before there is a third copy
        stored.append(ray.put((unit_PD, shard.rows_P)))
        del unit_PD
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
    features: Callable[[], NDArray[np.float32]],
    pools: Sequence[Pool],
    mine: MineConfig,
    compute: ComputeConfig,
    *,
    seed: int,
) -> tuple[float, int]:
    """Share of the exact neighbours of `mine.recall_sample` queries that the table has, and how
    many were compared.

    `features` gives the features (N, D), which nobody else should hold (see `find_neighbours`).
    """
    exact = mine.model_copy(update={"index": "flat"})
    sample = core.sample(pools, mine.recall_sample, seed)
    count = sum(len(pool.queries_Q) for pool in sample)
    return core.recall(found, find_neighbours(features(), sample, exact, compute)), count


def make_candidates(
    triplets: TripletRows,
    found: pa.Table,
    image_ND: NDArray[np.float32],
    text_TD: NDArray[np.float32],
    *,
    encoder: str,
    compute: ComputeConfig,
) -> pa.Table:
    """`raycd.mine.make_candidates`, measured by at most `compute.mine_workers` tasks at a time."""
    return core.make_candidates(
        triplets,
        found,
        image_ND,
        text_TD,
        encoder=encoder,
        score=partial(matching_scores, compute=compute),
    )


def matching_scores(
    image_ND: NDArray[np.float32],
    text_TD: NDArray[np.float32],
    reference_C: Rows,
    target_C: Rows,
    triplet_C: Rows,
    /,
    *,
    compute: ComputeConfig,
) -> NDArray[np.float64]:
    """`raycd.mine.matching_scores` by tasks that take SCORE_BLOCK candidates at a time."""
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
    resources = {"CPU": compute.cpus_per_worker}
    workers = cluster.fitting(compute.mine_workers or cluster.cpus(), resources)
    measure = {
        "batch_format": "pyarrow",
        "compute": ray.data.TaskPoolStrategy(size=min(workers, len(blocks))),
        "num_cpus": compute.cpus_per_worker,
        "fn_kwargs": {"images": ray.put(image_ND), "texts": ray.put(text_TD)},
    }
    for part in mapped("matching scores", "candidates", blocks, (_score, measure)):
        score_C[part["candidate"].to_numpy()] = part["score"].to_numpy()
    return score_C


def _block(visit: core.Visit, shards: Sequence[core.Shard]) -> pa.Table:
    """A visit as rows that Ray Data hands to one task."""
    size = len(visit.rows_B)
    place_B = shards[visit.home].rows_P.searchsorted(visit.rows_B)
    columns = {
        "shard": pa.repeat(pa.scalar(visit.shard, pa.int64()), size),
        "home": pa.repeat(pa.scalar(visit.home, pa.int64()), size),
        "query": visit.query_B,
        "place": pa.array(place_B, pa.int32()),
    }
    return pa.table(columns)


def _runs(ends: NDArray[np.bool_]) -> list[slice]:
    """Rows that belong together, where `ends` says of each but the last row whether others begin
    after it.
    """
    starts = [0, *(np.flatnonzero(ends) + 1).tolist()]
    return [
        slice(start, end) for start, end in zip(starts, [*starts[1:], len(ends) + 1], strict=True)
    ]


def _task_size(
    pools: Sequence[Pool], shards: Sequence[core.Shard], mine: MineConfig, workers: int
) -> int:
    """Query images of one task. It is large, because Ray Data takes a fifth of a second between two
    of them.
    """
    visits = sum(len(pools[shard.pool].queries_Q) for shard in shards if shard.found)
    largest = max((len(shard.rows_P) for shard in shards), default=1)
    share = -(-visits // (TASKS * workers)) if workers > 1 else visits
    return max(mine.batch_size, min(share, PAIRS // largest))


def _on_gpu(mine: MineConfig, compute: ComputeConfig) -> bool:
    """Whether FAISS searches on GPUs: where faiss-gpu is installed and the workers get them."""
    return mine.index == "flat" and core.FAISS_GPU and cluster.uses_gpu(compute)


def _resources(mine: MineConfig, compute: ComputeConfig) -> dict[str, float]:
    return (
        cluster.worker_resources(compute)
        if _on_gpu(mine, compute)
        else {"CPU": compute.cpus_per_worker}
    )


def _searching(
    shards: Sequence[core.Shard],
    stored: Sequence[ray.ObjectRef[Any]],
    mine: MineConfig,
    compute: ComputeConfig,
    workers: int,
    largest: int,
) -> dict[str, Any]:
    """How Ray Data runs the searching tasks, of blocks of `largest` rows at most."""
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
        # With GPUs Ray Data wants a number of rows, and cuts and joins blocks to it.
        **({"num_gpus": resources["GPU"], "batch_size": largest} if "GPU" in resources else {}),
        "fn_kwargs": {
            "stored": list(zip(stored, indexes, strict=True)),
            "mine": mine,
            "threads": cluster.threads(compute, -(-workers // cluster.machines())),
            "gpu": "GPU" in resources,
        },
    }


def _build(shard: tuple[NDArray[np.float32], Rows], mine: MineConfig) -> NDArray[np.uint8]:
    """A task: the index of a shard."""
    return approximate.build(shard[0], mine)


def _search(
    block: pa.Table,
    stored: Sequence[tuple[ray.ObjectRef[Any], ray.ObjectRef[Any] | None]],
    mine: MineConfig,
    threads: int,
    gpu: bool,
) -> pa.Table:
    """A task: one visit, or some, or parts of them, in batches."""
    shard_B, home_B, place_B = (block[name].to_numpy() for name in ("shard", "home", "place"))
    keys = []
    for own in _runs((np.diff(shard_B) != 0) | (np.diff(home_B) != 0)):
        unit_PD, rows_P = ray.get(stored[home_B[own.start]][0])
        shard, index = stored[shard_B[own.start]]
        searcher = _searcher(shard, index, mine, threads, gpu)
        keys.append(searcher(rows_P[place_B[own]], unit_PD, place_B[own]))
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
    if name not in _held:
        _held.clear()
        unit_PD, rows_P = ray.get(shard)
        nearest = core.on_gpu(unit_PD) if gpu else None
        if index is not None:
            nearest = approximate.Opened(ray.get(index), mine)
        _held[name] = core.NeighbourSearch(unit_PD, rows_P, mine, nearest, threads=threads)
    return _held[name]


def _add(part: pa.Table, lists: core.Lists) -> None:
    """What a task found: of its visits, which may bring the same query from several shards, one at
    a time.
    """
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
