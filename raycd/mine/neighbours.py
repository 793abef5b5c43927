"""Neighbours: for each query image the S most similar images of its pool.

These are eqs 8 and 9 at their loosest. A pool is cut into shards that one worker can hold; a shard
is the pool with a part of its images. Every query visits every shard of its pool, and the lists are
merged: the same table for any number of batches, shards and workers, in any order, where the search
is exact.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raycd.config import MineConfig
from raycd.errors import DataError
from raycd.index import approximate
from raycd.mine.pools import Pool, Rows
from raycd.mine.search import NOTHING, Keys, Nearest, NeighbourSearch, decode, flat, merged
from raycd.progress import Bar

META = b"raycd.mine"  # key of the tables' metadata: JSON
LARGEST = 8192  # queries of a visit: their features are copied
_BLOCK = 512  # rows normalised at once: they stay in a core's cache

NEIGHBOURS = pa.schema(
    [
        pa.field("pool", pa.string(), nullable=False),  # "" for all train images, else the category
        pa.field("image", pa.int32(), nullable=False),  # row of the features; the query
        # Rows, by similarity descending, then row
        pa.field("neighbours", pa.list_(pa.int32()), nullable=False),
        # Cosine, rounded to 6 decimals
        pa.field("similarities", pa.list_(pa.float64()), nullable=False),
        # More than S images are at or above the floor
        pa.field("truncated", pa.bool_(), nullable=False),
    ]
)


def make_shards(pools: Sequence[Pool], dim: int, mine: MineConfig) -> list[Pool]:
    """Cut the images of each pool into equal parts that need at most `mine.worker_mib` each."""
    most = max(1, (mine.worker_mib << 20) // row_bytes(dim, mine))
    shards: list[Pool] = []
    for pool in pools:
        count = len(pool.rows_P)
        size = -(-count // -(-count // most)) if count else 1
        parts = (pool.rows_P[start : start + size] for start in range(0, count, size))
        shards += [replace(pool, rows_P=part) for part in parts]
    return shards


def row_bytes(dim: int, mine: MineConfig) -> int:
    """Return the greatest memory of one image in a worker, in bytes.

    Where HNSW or IVF is built, FAISS holds three entries of its structure while that is serialised:
    its own, the stream's and the array's. Its IVF lists grow by doubling, which may take a fourth.
    A search holds one.
    """
    copies = {"flat": 0, "hnsw": 3, "ivf": 4}[mine.index]
    return 4 * dim + copies * approximate.entry_bytes(dim, mine)


def visits(shard: Pool, mine: MineConfig, most: int = LARGEST) -> Iterator[Pool]:
    """Yield the shard with a part of its queries: a batch, or at most `most` at a time."""
    size = max(mine.batch_size, min(most, LARGEST))
    for start in range(0, len(shard.queries_Q), size):
        yield replace(shard, queries_Q=shard.queries_Q[start : start + size])


def find_neighbours(
    features_ND: NDArray[np.float32],
    pools: Sequence[Pool],
    mine: MineConfig,
    *,
    nearest: Callable[[NDArray[np.float32]], Nearest] | None = None,
) -> pa.Table:
    """Return the first `mine.neighbours` images at or above `mine.floor` for each query image.

    Args:
        features_ND: Image features, normalised or not.
        pools: Where to search, and for which images. An image is not a neighbour of itself; its
            duplicates are.
        nearest: Returns the search of a shard's normalised features (P, D); None: the search that
            `mine.index` names, on CPUs.
    Returns:
        Table NEIGHBOURS, one row per pool and query image, in their order.
    """
    shards = make_shards(pools, features_ND.shape[1], mine)

    def found() -> Iterator[tuple[Pool, Keys]]:
        for shard in shards:
            unit_PD = normalise(features_ND[shard.rows_P], shard.rows_P)
            by = (nearest or partial(_by_setting, mine=mine))(unit_PD)
            search = NeighbourSearch(unit_PD, shard.rows_P, mine, by)
            for visit in visits(shard, mine):
                rows_B = visit.queries_Q
                yield visit, search(rows_B, normalise(features_ND[rows_B], rows_B))

    return merge(found(), pools, mine, total=sum(len(shard.queries_Q) for shard in shards))


def _by_setting(unit_PD: NDArray[np.float32], mine: MineConfig) -> Nearest:
    if mine.index == "flat":
        return flat(unit_PD)
    return approximate.Opened(approximate.build(unit_PD, mine), mine)


def merge(
    found: Iterable[tuple[Pool, Keys]], pools: Sequence[Pool], mine: MineConfig, *, total: int
) -> pa.Table:
    """Return table NEIGHBOURS from what all visits, of `total` queries, found in any order.

    Its metadata holds S and the floor.
    """
    row_Q = np.concatenate([np.empty(0, np.int32), *(pool.queries_Q for pool in pools)])
    size, key_QS = mine.neighbours, np.full((len(row_Q), mine.neighbours + 1), NOTHING)
    parts = np.split(key_QS, np.cumsum([len(pool.queries_Q) for pool in pools]))
    key_of = {pool.name: (pool.queries_Q, part) for pool, part in zip(pools, parts, strict=False)}
    with Bar("neighbours", total=total, unit="images") as bar:
        for visit, key_BS in found:
            queries_Q, own_QS = key_of[visit.name]
            own = np.searchsorted(queries_Q, visit.queries_Q)
            own_QS[own] = merged(own_QS[own], key_BS)
            bar.advance(len(key_BS))
    there_QS = key_QS[:, :size] != NOTHING
    rows, similarities = decode(key_QS[:, :size][there_QS])
    offsets = pa.array(np.concatenate([[0], np.cumsum(there_QS.sum(axis=1))]), pa.int32())
    columns = [
        pa.array([pool.name for pool in pools for _ in pool.queries_Q], pa.string()),
        pa.array(row_Q, pa.int32()),
        pa.ListArray.from_arrays(offsets, pa.array(rows, pa.int32())),
        pa.ListArray.from_arrays(offsets, pa.array(similarities, pa.float64())),
        pa.array(key_QS[:, size] != NOTHING),
    ]
    meta = {META: json.dumps({"neighbours": size, "floor": mine.floor})}
    return pa.Table.from_arrays(columns, schema=NEIGHBOURS).replace_schema_metadata(meta)


def normalise(features_PD: NDArray[np.float32], rows_P: Rows) -> NDArray[np.float32]:
    """Bring features to length 1 in place, and return them; zeros stay zero, similar to none.

    The norm is computed in float64, so that the rounding of its sum does not show in float32.
    Raises DataError, with the row of the feature matrix, where one is not finite.
    """
    for start in range(0, len(features_PD), _BLOCK):
        block = features_PD[start : start + _BLOCK].astype(np.float64)
        norm = np.sqrt(np.einsum("nd,nd->n", block, block))
        if not np.isfinite(norm).all():
            raise DataError(
                f"the features of row {rows_P[start + np.isfinite(norm).argmin()]} are not finite",
                do="embed again; the encoder may be broken",
            )
        features_PD[start : start + _BLOCK] = block / np.where(norm > 0, norm, 1)[:, None]
    return features_PD
