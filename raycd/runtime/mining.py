"""Mining on Ray Data: `raycd.mine`'s neighbours and candidates, with equal results at any number of blocks and workers.

Features go into the object store once; actors and tasks read them there without a copy. Neighbours are searched by
`compute.mine_workers` actors, candidates are measured by tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from raycd import mine as core
from raycd.config import ComputeConfig, MineConfig
from raycd.mine.pools import Pool, Rows, TripletRows
from raycd.runtime import cluster
from raycd.runtime.datasets import blocks_of, mapped

SCORE_BLOCK = 1 << 15  # candidates measured by one task


def find_neighbours(
    features_ND: NDArray[np.float32], pools: Sequence[Pool], mine: MineConfig, compute: ComputeConfig
) -> pa.Table:
    """`raycd.mine.find_neighbours` by actors that take `mine.batch_size` query images at a time."""
    blocks = list(core.batches(pools, mine.batch_size))
    if not blocks:
        return core.collect([], pools, mine)
    workers = min(_workers(compute), len(blocks))
    search = {
        "batch_format": "pyarrow",
        "compute": ray.data.ActorPoolStrategy(size=workers),
        "num_cpus": compute.cpus_per_worker,
        "fn_constructor_kwargs": {
            "features": ray.put(core.normalise(features_ND)),
            "pools": ray.put(list(pools)),
            "mine": mine,
            "threads": cluster.threads(compute, workers),
        },
    }
    return core.collect(mapped("neighbours", "images", blocks, (_Search, search)), pools, mine)


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
        triplets, found, image_ND, text_TD, encoder=encoder, score=partial(matching_scores, compute=compute)
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
    measure = {
        "batch_format": "pyarrow",
        "compute": ray.data.TaskPoolStrategy(size=min(_workers(compute), len(blocks))),
        "num_cpus": compute.cpus_per_worker,
        "fn_kwargs": {"images": ray.put(image_ND), "texts": ray.put(text_TD)},
    }
    for part in mapped("matching scores", "candidates", blocks, (_score, measure)):
        score_C[part["candidate"].to_numpy()] = part["score"].to_numpy()
    return score_C


class _Search:
    """An actor that searches neighbours."""

    def __init__(self, features: ray.ObjectRef[Any], pools: ray.ObjectRef[Any], mine: MineConfig, threads: int) -> None:
        faiss.omp_set_num_threads(threads)
        self.searcher = core.Searcher(ray.get(features), ray.get(pools), mine)

    def __call__(self, queries: pa.Table) -> pa.Table:
        return self.searcher(queries)


def _score(rows: pa.Table, images: ray.ObjectRef[Any], texts: ray.ObjectRef[Any]) -> pa.Table:
    score = core.matching_scores(
        ray.get(images),
        ray.get(texts),
        rows["reference"].to_numpy(),
        rows["target"].to_numpy(),
        rows["triplet"].to_numpy(),
    )
    return pa.table({"candidate": rows["candidate"], "score": pa.array(score)})


def _workers(compute: ComputeConfig) -> int:
    return cluster.fitting(compute.mine_workers, {"CPU": compute.cpus_per_worker})
