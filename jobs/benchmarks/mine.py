"""Mining: Ray Data against one `IndexFlatIP.search` in this process, at the size of Fashion-IQ's
train images.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import time
from typing import Any

import faiss
import numpy as np
from benchmarks.memory import proportional, watched
from numpy.typing import NDArray

from raycd import mine as core
from raycd.config import Config, MineConfig
from raycd.mine.pools import Rows
from raycd.runtime import cluster, mining

DIM, NEIGHBOURS = 640, 64
ROUNDS = 3  # each way in turn; the median counts
WARM_UP = 8192  # images that are mined before a clock starts


def measure(config: Config, flags: argparse.Namespace) -> dict[str, Any]:
    """Seconds of both ways from features to neighbours, their ratio, memory beside the features,
    candidates scored.

    Both are warm: Ray's worker processes are there and have imported what they need. What a first
    use costs is told apart. Every list is full (no floor), which is the most work that `raycd.mine`
    can have.
    """
    count = flags.images or 46_609
    settings = MineConfig(neighbours=NEIGHBOURS, floor=-1, batch_size=config.mine.batch_size)
    rows: dict[str, Any] = {
        "images": count,
        "dim": DIM,
        "neighbours": NEIGHBOURS,
        "cores": os.cpu_count(),
    }
    with cluster.connected():
        rows["first use: 8,192 images by Ray Data, s"] = _ray(clustered(WARM_UP), settings, config)[
            1
        ]
        _warm(settings, config)
        rows |= _memory(count, settings, config)
        features = clustered(count)
        flat, ray_data = [], []
        for _ in range(ROUNDS):
            flat.append(_flat(features)[1])
            table, seconds = _ray(features, settings, config)
            ray_data.append(seconds)
        places, _ = _flat(features[:1000], features)
        rows["largest share of neighbours that the ways do not share"] = 1 - _shared(table, places)
        rows["IndexFlatIP.search, s"] = statistics.median(flat)
        rows["Ray Data, s"] = statistics.median(ray_data)
        rows["ratio"] = rows["IndexFlatIP.search, s"] / rows["Ray Data, s"]
        rows["rounds, IndexFlatIP.search : Ray Data, s"] = ", ".join(
            f"{one:.2f} : {other:.2f}" for one, other in zip(flat, ray_data, strict=True)
        )
        rows |= _scores(features, flags.candidates, config)
    return rows


def _warm(settings: MineConfig, config: Config) -> None:
    """Let every worker process of this machine import what it needs: whichever is asked later has
    it.
    """
    workers = cluster.cpus()
    compute = config.compute.model_copy(update={"mine_workers": workers, "threads": 1})
    for _ in range(2):
        _ray(clustered(workers * WARM_UP), settings, config.model_copy(update={"compute": compute}))


def clustered(count: int, dim: int = DIM, *, seed: int = 0) -> NDArray[np.float32]:
    """Features like those of a catalogue: noise around 2,000 centres of one common direction, sizes
    by Zipf's law.
    """
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((2000, dim), dtype=np.float32) + rng.standard_normal(
        dim, dtype=np.float32
    )
    shares = 1 / np.arange(1, 2001) ** 0.5
    features = np.empty((count, dim), np.float32)
    for start in range(0, count, 4096):
        own = features[start : start + 4096]
        own[:] = centres[rng.choice(2000, len(own), p=shares / shares.sum())]
        own += 0.5 * rng.standard_normal(own.shape, dtype=np.float32)
    return features


def _ray(features: NDArray[np.float32], settings: MineConfig, config: Config) -> tuple[Any, float]:
    everything = np.arange(len(features), dtype=np.int32)
    began = time.perf_counter()
    table = mining.find_neighbours(
        features, [core.Pool("", everything, everything)], settings, config.compute
    )
    return table, time.perf_counter() - began


def _flat(
    queries: NDArray[np.float32], features: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.int64], float]:
    """Places of the neighbours; the clock runs for the search alone, on all cores."""
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    unit = core.normalise(queries if features is None else features)
    index = faiss.IndexFlatIP(unit.shape[1])
    index.add(unit)
    query = core.normalise(queries)
    began = time.perf_counter()
    _, places = index.search(query, NEIGHBOURS + (features is not None))
    return places, time.perf_counter() - began


def _shared(table: Any, places: NDArray[np.int64]) -> float:
    """Share of FAISS's neighbours (the image itself left out) that the table has for the first
    queries, at worst.
    """
    lists = table["neighbours"].slice(0, len(places)).to_pylist()
    shares = []
    for query, (found, place) in enumerate(zip(lists, places.tolist(), strict=True)):
        others = [other for other in place if other != query][:NEIGHBOURS]
        shares.append(len(set(found) & set(others)) / NEIGHBOURS)
    return min(shares)


def _memory(count: int, settings: MineConfig, config: Config) -> dict[str, float]:
    """The peak of all processes together over what they had before there were features."""
    gc.collect()
    before = proportional()
    everything = np.arange(count, dtype=np.int32)
    pools = [core.Pool("", everything, everything)]
    with watched() as peak:
        mining.find_neighbours(clustered(count), pools, settings, config.compute)
    grown = peak.bytes - before
    return {
        "memory at most, MiB": grown / 2**20,
        "memory : feature matrix": grown / (4 * DIM * count),
    }


def _scores(features: NDArray[np.float32], count: int, config: Config) -> dict[str, float]:
    """Matching scores of random candidates among as many triplets as Fashion-IQ has."""
    rng = np.random.default_rng(1)
    texts = clustered(18_000, seed=1)

    def rows(high: int) -> Rows:
        return rng.integers(0, high, count).astype(np.int32)

    reference, target, triplet = rows(len(features)), rows(len(features)), rows(len(texts))
    began = time.perf_counter()
    mining.matching_scores(features, texts, reference, target, triplet, compute=config.compute)
    return {"candidates": count, "matching scores by Ray Data, s": time.perf_counter() - began}
