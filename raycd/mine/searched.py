"""The record of a search: what it took, and how many of the neighbours it found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raycd.config import MineConfig
from raycd.mine.neighbours import row_bytes, rows_for
from raycd.mine.pools import Pool

ENOUGH = 0.95  # below this recall the pseudo triplets differ too much from those of exact search


class Searched(TypedDict):
    """What it took, and how many neighbours it found."""

    kind: str  # mine.index: "flat", "hnsw" or "ivf"
    shards: int  # of all pools together
    worker_mib: float  # memory of the largest shard in a worker, MiB, rounded up to a tenth
    recall: float  # share of the exact neighbours that were found; 1 for flat, which is exact
    sample: int  # query images whose neighbours were compared with exact search; 0 for flat


def recall(found: pa.Table, exact: pa.Table) -> float:
    """Return the share of the neighbours in `exact` that `found` has; 1 where there are none."""
    asked = found.take(rows_for(found, exact["pool"], exact["image"]))
    lists = (table["neighbours"].to_pylist() for table in (asked, exact))
    hits = sum(len(set(one) & set(other)) for one, other in zip(*lists, strict=True))
    wanted = len(pc.list_flatten(exact["neighbours"]))
    return hits / wanted if wanted else 1.0


def sample(pools: Sequence[Pool], count: int, seed: int) -> list[Pool]:
    """Return the same pools with about `count` queries in all, drawn by the seed."""
    ends = np.cumsum([len(pool.queries_Q) for pool in pools], dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    chosen = np.zeros(total, np.bool_)
    chosen[np.random.default_rng([seed, 8]).permutation(total)[:count]] = True
    return [
        replace(pool, queries_Q=pool.queries_Q[own])
        for pool, own in zip(pools, np.split(chosen, ends[:-1]), strict=False)
    ]


def searched(
    shards: Sequence[Pool], dim: int, mine: MineConfig, *, recall: float = 1.0, sample: int = 0
) -> Searched:
    """Return the record of a search among features of size `dim`; the recall is of `sample`."""
    largest = max((len(shard.rows_P) for shard in shards), default=0)
    return {
        "kind": mine.index,
        "shards": len(shards),
        "worker_mib": math.ceil(10 * largest * row_bytes(dim, mine) / (1 << 20)) / 10,
        "recall": round(recall, 4),
        "sample": sample,
    }


def searched_line(found: Searched) -> str:
    """Return the record as one line.

    For example "hnsw, 3 shards of at most 512 MiB, recall 0.987 of the exact neighbours of 1,000
    images".
    """
    parts = "1 shard of" if found["shards"] == 1 else f"{found['shards']:,} shards of at most"
    text = f"{found['kind']}, {parts} {found['worker_mib']:,g} MiB, "
    if found["kind"] == "flat":
        return text + "exact"
    of = f"of the exact neighbours of {found['sample']:,} images"
    return f"{text}recall {found['recall']:.3f} {of}"


def low_recall(found: Searched) -> list[str]:
    """Return a warning with its remedy where the search missed too many neighbours."""
    if found["recall"] >= ENOUGH:
        return []
    setting = {"hnsw": "mine.hnsw_ef", "ivf": "mine.ivf_probes"}[found["kind"]]
    return [
        f"{found['kind']} found {found['recall']:.1%} of the exact neighbours of "
        f"{found['sample']:,} images, less than {ENOUGH:.0%}: raise {setting} and mine again"
    ]
