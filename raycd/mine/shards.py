"""Shards: a pool cut into parts that one worker can hold, and the record of a search through them.

A query visits all shards of its pool, and the resulting lists are merged. So a worker's memory is
bounded by `mine.worker_mib` however large the pool is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from raycd.config import MineConfig
from raycd.index.approximate import PER_LIST
from raycd.mine.pools import Pool, Rows

ENOUGH = 0.95  # below this recall the pseudo triplets differ too much from those of exact search


@dataclass(frozen=True)
class Shard:
    """Some images of a pool."""

    pool: int
    """Index of the pool in the list of pools."""
    rows_P: Rows
    """Ascending."""
    found: bool = True
    """False: held-out images, which are queries and never found."""


@dataclass(frozen=True)
class Visit:
    """Queries of one pool that search one of its shards."""

    shard: int
    """Index of the shard in the list of shards."""
    home: int
    """Index of the shard, of the same pool, that holds these queries themselves."""
    query_B: NDArray[np.int64]
    """Numbers of these queries among the queries of all pools."""
    rows_B: Rows
    """The queries."""


def make_shards(pools: Sequence[Pool], dim: int, mine: MineConfig) -> list[Shard]:
    """Cut the pools into equal parts that need at most `mine.worker_mib` each."""
    most = max(1, (mine.worker_mib << 20) // row_bytes(dim, mine))
    shards: list[Shard] = []
    for number, pool in enumerate(pools):
        held_out = np.setdiff1d(pool.queries_Q, pool.rows_P)
        for rows, found in ((pool.rows_P, True), (held_out, False)):
            count = -(-len(rows) // most)
            size = -(-len(rows) // count) if count else 1
            shards += [
                Shard(number, rows[start : start + size], found)
                for start in range(0, len(rows), size)
            ]
    return shards


def row_bytes(dim: int, mine: MineConfig) -> int:
    """Return the greatest memory of one image in a worker, in bytes.

    It is the features (4 D bytes), and where HNSW or IVF is built, several copies of the image's
    entry. An entry is another copy of the features and:

    - HNSW: 2 M links of 4 bytes on the ground level. An image is on level l or above with
      probability M^-l, so the levels above add M / (M - 1) links on average; a tenth of M is
      added as a margin. 12 bytes are the level and the offset of the links.
    - IVF: the image's number (8 bytes) and its share of a centre (4 D / PER_LIST bytes).

    FAISS holds three entries while a structure is serialised: its own, the stream's and the
    array's. Its IVF lists grow by doubling, which may take a fourth. A search holds one.
    """
    features = 4 * dim
    if mine.index == "flat":
        return features
    if mine.index == "ivf":
        return features + 4 * (features + 8 + math.ceil(features / PER_LIST))
    links = mine.hnsw_m * (2.1 + 1 / (mine.hnsw_m - 1))
    return features + 3 * (features + 12 + math.ceil(4 * links))


def visits(pools: Sequence[Pool], shards: Sequence[Shard], size: int) -> Iterator[Visit]:
    """Yield every query once for every shard of its pool, at most `size` at a time, by shard."""
    starts = np.cumsum([0, *(len(pool.queries_Q) for pool in pools)])
    living = [
        np.flatnonzero(np.isin(pools[shard.pool].queries_Q, shard.rows_P)) for shard in shards
    ]
    for number, shard in enumerate(shards):
        for home, other in enumerate(shards):
            if shard.found and other.pool == shard.pool:
                for at in range(0, len(living[home]), size):
                    own = living[home][at : at + size]
                    yield Visit(
                        number, home, starts[shard.pool] + own, pools[shard.pool].queries_Q[own]
                    )


class Searched(TypedDict):
    """The record of a search: what it took, and how many neighbours it found."""

    kind: str  # mine.index: "flat", "hnsw" or "ivf"
    shards: int  # of all pools together
    worker_mib: float  # memory of the largest shard in a worker, MiB, rounded up to a tenth
    recall: float  # share of the exact neighbours that were found; 1 for flat, which is exact
    sample: int  # query images whose neighbours were compared with exact search; 0 for flat


def searched(
    shards: Sequence[Shard], dim: int, mine: MineConfig, *, recall: float = 1.0, sample: int = 0
) -> Searched:
    """Return the record of a search among features of size `dim`.

    `recall` was measured on `sample` query images.
    """
    largest = max((len(shard.rows_P) for shard in shards), default=0)
    tenths = math.ceil(10 * largest * row_bytes(dim, mine) / (1 << 20))
    return {
        "kind": mine.index,
        "shards": sum(shard.found for shard in shards),
        "worker_mib": tenths / 10,
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
    return (
        text + f"recall {found['recall']:.3f} of the exact neighbours of {found['sample']:,} images"
    )


def low_recall(found: Searched) -> list[str]:
    """Return a warning with its remedy where the search missed too many neighbours."""
    if found["recall"] >= ENOUGH:
        return []
    setting = {"hnsw": "mine.hnsw_ef", "ivf": "mine.ivf_probes"}[found["kind"]]
    return [
        f"{found['kind']} found {found['recall']:.1%} of the exact neighbours of "
        f"{found['sample']:,} images, less than {ENOUGH:.0%}: raise {setting} and mine again"
    ]
