"""Mining: Ray against one `IndexFlatIP.search` in this process, at Fashion-IQ's size."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from jobs.benchmarks.measuring import DIM, features, on_cpus, peak, timed
from raycd import mine as core
from raycd.config import Config, MineConfig
from raycd.features import READABLE, shards, to_table
from raycd.features.stored import Stored
from raycd.mine.neighbours import normalise
from raycd.mine.pools import Rows
from raycd.mine.proposals import arithmetic, nearest, proposed
from raycd.mine.search import Shard, search
from raycd.model.threads import usable_cpus
from raycd.runtime import cluster, mining

NEIGHBOURS, TEXTS = 64, 18_000  # of each image; triplets of Fashion-IQ
ROUNDS = 3  # each way in turn; the median counts
WARM_UP = 8192  # images that are mined before a clock starts


def measure(config: Config, flags: argparse.Namespace) -> dict[str, Any]:
    """Return seconds of both ways from features to neighbours, memory, and candidates scored.

    Ray's way reads the features in shards, as a run has them. Both are warm: Ray's worker
    processes are there and have imported what they need. What a first use costs has its own row.
    Every list is full (no floor): the most work `raycd.mine` can have.
    """
    count, config = flags.images or 46_609, on_cpus(config)
    settings = MineConfig(neighbours=NEIGHBOURS, floor=-1, batch_size=config.mine.batch_size)

    def ray(stored: Stored, config: Config = config) -> Any:
        everything = np.arange(stored.starts[-1], dtype=np.int32)
        pools = [core.Pool("", everything, everything)]
        return mining.find_neighbours(stored, pools, settings, config.compute)

    rows: dict[str, Any] = {"images": count, "dim": DIM, "neighbours": NEIGHBOURS}
    rows["cores"] = usable_cpus()
    with tempfile.TemporaryDirectory() as scratch, cluster.connected():
        first = _in_shards(Path(scratch, "first"), features(WARM_UP))
        rows["first use: 8,192 images by Ray, s"] = timed(lambda: ray(first))[1]
        # Every worker process must import what it needs: whichever is asked later has it.
        workers = {"mine_workers": cluster.cpus(), "threads": 1}
        all_at_once = config.model_copy(
            update={"compute": config.compute.model_copy(update=workers)}
        )
        for _ in range(2):
            more = features(cluster.cpus() * WARM_UP)
            ray(_in_shards(Path(scratch, "more"), more), all_at_once)
        stored = _in_shards(Path(scratch, "all"), features(count))
        _, mebibytes = peak(lambda: ray(stored))
        rows["memory at most, MiB"] = mebibytes
        rows["memory : feature matrix"] = mebibytes * 2**20 / (4 * DIM * count)
        feature_ND = features(count)
        alone, by_ray = [], []
        for _ in range(ROUNDS):
            alone.append(_flat(feature_ND, feature_ND)[1])
            table, seconds = timed(lambda: ray(stored))
            by_ray.append(seconds)
        nearest, _ = _flat(feature_ND[:1000], feature_ND)
        rows["largest share of neighbours that the ways do not share"] = 1 - _shared(table, nearest)
        rows["IndexFlatIP.search, s"] = statistics.median(alone)
        rows["Ray, s"] = statistics.median(by_ray)
        rows["ratio"] = rows["IndexFlatIP.search, s"] / rows["Ray, s"]
        pairs = [f"{one:.2f} : {other:.2f}" for one, other in zip(alone, by_ray, strict=True)]
        rows["rounds, IndexFlatIP.search : Ray, s"] = ", ".join(pairs)
        rows |= _steps(feature_ND, settings)
        return rows | _scores(stored, count, flags.candidates, config)


def _steps(feature_ND: NDArray[np.float32], settings: MineConfig) -> dict[str, float]:
    """Return the CPU seconds of one thread for one batch, step by step, the best of some rounds."""
    every, size = np.arange(len(feature_ND), dtype=np.int32), settings.batch_size
    unit_ND = _normalised(feature_ND)
    unit, shard = torch.from_numpy(unit_ND), [Shard(unit_ND, every)]
    index = faiss.IndexFlatIP(DIM)
    index.add(unit_ND)
    kind = arithmetic("cpu", len(unit_ND), NEIGHBOURS + 1)
    depth = proposed(NEIGHBOURS + 1, kind)
    ways: dict[str, Callable[[], object]] = {
        "IndexFlatIP.search": lambda: index.search(unit_ND[:size], NEIGHBOURS + 1),
        "images proposed": lambda: nearest(unit[:size], unit, depth, kind),
        "images proposed and measured": lambda: search(
            every[:size], unit_ND[:size], shard, settings, threads=1
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    for _ in range(ROUNDS):
        for name, way in ways.items():
            began = time.process_time()
            way()
            seconds[name].append(time.process_time() - began)
    torch.set_num_threads(before)
    return {f"one thread, {size:,} queries, s: {name}": min(all_) for name, all_ in seconds.items()}


def _flat(
    query_BD: NDArray[np.float32], feature_ND: NDArray[np.float32]
) -> tuple[NDArray[np.int64], float]:
    """Return the rows of the neighbours, and the seconds of the search alone, on all cores."""
    faiss.omp_set_num_threads(usable_cpus())
    index = faiss.IndexFlatIP(DIM)
    index.add(_normalised(feature_ND))
    unit_BD = _normalised(query_BD)
    (_, nearest), seconds = timed(lambda: index.search(unit_BD, NEIGHBOURS + 1))  # and itself
    return nearest, seconds


def _normalised(feature_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    return normalise(feature_ND.copy(), np.arange(len(feature_ND), dtype=np.int32))


def _shared(table: Any, nearest: NDArray[np.int64]) -> float:
    """Return the least share of FAISS's neighbours, the image left out, that a table's row has."""
    lists = table["neighbours"].slice(0, len(nearest)).to_pylist()
    shares = []
    for query, (found, rows) in enumerate(zip(lists, nearest.tolist(), strict=True)):
        others = [other for other in rows if other != query][:NEIGHBOURS]
        shares.append(len(set(found) & set(others)) / NEIGHBOURS)
    return min(shares)


def _in_shards(folder: Path, feature_ND: NDArray[np.float32]) -> Stored:
    """Write features as `embed` does: a thousand in a shard."""
    keys, uri = [f"{row:08d}" for row in range(len(feature_ND))], str(folder)
    table = to_table(keys, [READABLE] * len(keys), feature_ND)
    plan = shards.ShardPlan.of_rows(len(keys), 64, 1, {})
    shards.begin(uri, plan)
    for number in range(plan.shards):
        size = plan.shard_rows or 0
        shards.write(uri, number, table.slice(number * size, size))
    return Stored.open(folder)


def _scores(stored: Stored, images: int, count: int, config: Config) -> dict[str, float]:
    """Score random candidates among as many triplets as Fashion-IQ has."""
    rng, texts = np.random.default_rng(1), features(TEXTS, drawn=1)

    def drawn(high: int) -> Rows:
        return rng.integers(0, high, count).astype(np.int32)

    rows = drawn(images), drawn(images), drawn(TEXTS)
    scored = timed(lambda: mining.matching_scores(stored, texts, *rows, compute=config.compute))
    return {"candidates": count, "matching scores by Ray, s": scored[1]}
