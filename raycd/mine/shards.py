"""Shards: a pool cut into parts that one worker can hold.

A query visits all shards of its pool, and the lists that it brings back are merged. So a worker's memory is bounded by
`mine.worker_mib` however large the pool is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from raycd.approximate import PER_LIST
from raycd.config import MineConfig
from raycd.mine.pools import Pool, Rows


@dataclass(frozen=True)
class Shard:
    """Some images of a pool."""

    pool: int  # place of the pool in their list
    rows_P: Rows  # ascending


@dataclass(frozen=True)
class Visit:
    """Queries of one pool that search one of its shards."""

    shard: int  # place of the shard in their list
    home: int  # the shard of the same pool that holds these queries themselves
    first: int  # place of the first of these queries among the queries of all pools
    rows_B: Rows  # the queries


def make_shards(pools: Sequence[Pool], dim: int, mine: MineConfig) -> list[Shard]:
    """The pools in equal parts that need at most `mine.worker_mib` each."""
    most = max(1, (mine.worker_mib << 20) // row_bytes(dim, mine))
    shards = []
    for place, pool in enumerate(pools):
        count = -(-len(pool.rows_P) // most)
        size = -(-len(pool.rows_P) // count) if count else 1
        shards += [Shard(place, pool.rows_P[start : start + size]) for start in range(0, len(pool.rows_P), size)]
    return shards


def row_bytes(dim: int, mine: MineConfig) -> int:
    """Most memory of one image in a worker: its features, and where HNSW or IVF is built, several copies of its entry.

    An entry is another copy of the features, and beside it for HNSW 2 M links on the ground; above it, chance gives
    M / (M - 1) on average, a tenth of M more is to spare; where they begin and the level, 12 bytes. For IVF, the
    image's number and its share of a centre. FAISS holds three of them when a structure is serialised: its own, the
    stream's and the array's. Its IVF lists grow by doubling, which may take a fourth. A search holds one.
    """
    features = 4 * dim
    if mine.index == "flat":
        return features
    if mine.index == "ivf":
        return features + 4 * (features + 8 + math.ceil(features / PER_LIST))
    links = mine.hnsw_m * (2.1 + 1 / (mine.hnsw_m - 1))
    return features + 3 * (features + 12 + math.ceil(4 * links))


def visits(pools: Sequence[Pool], shards: Sequence[Shard], size: int) -> Iterator[Visit]:
    """Every query once to every shard of its pool, at most `size` at a time, shard by shard."""
    starts = {}
    first = 0
    for place, pool in enumerate(pools):
        starts[place], first = first, first + len(pool.queries_Q)
    for number, shard in enumerate(shards):
        for home, other in enumerate(shards):
            if other.pool == shard.pool and len(other.rows_P):
                yield from _from(number, home, pools[shard.pool], other, starts[shard.pool], size)


def _from(number: int, home: int, pool: Pool, other: Shard, start: int, size: int) -> Iterator[Visit]:
    """The visits of the queries that live in `other`."""
    low, high = pool.queries_Q.searchsorted([other.rows_P[0], other.rows_P[-1] + 1])
    for at in range(low, high, size):
        yield Visit(number, home, start + at, pool.queries_Q[at : min(at + size, high)])
