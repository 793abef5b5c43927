"""Neighbours: for each query image the S most similar images of its pool, and a record of both.

These are eqs 8 and 9 at their loosest. A pool is cut into shards that one worker can hold; every
query is compared with every shard of its pool, and the lists are merged. Where the search is exact,
the table is the same for any shards, batches and devices. The record says what the search took, and
how many of the neighbours it found.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raycd.config import MineConfig
from raycd.errors import DataError
from raycd.index import approximate
from raycd.mine.pools import Pool, Rows
from raycd.mine.search import NOTHING, Keys, Shard, decode, search

META = b"raycd.mine"  # key of the tables' metadata: JSON
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


Search = Callable[[Sequence[Pool], MineConfig], pa.Table]
"""Pools and settings -> table NEIGHBOURS."""


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
    if mine.index == "flat":
        return 4 * dim
    return 4 * dim + {"hnsw": 3, "ivf": 4}[mine.index] * approximate.entry_bytes(dim, mine)


def make_ready(features_PD: NDArray[np.float32], rows_P: Rows, mine: MineConfig) -> Shard:
    """Normalise a shard's features in place, and build what `mine.index` names."""
    unit_PD = normalise(features_PD, rows_P)
    if mine.index == "flat":
        return Shard(unit_PD, rows_P)
    return Shard(unit_PD, rows_P, approximate.build(unit_PD, mine))


def find_neighbours(
    features_ND: NDArray[np.float32],
    pools: Sequence[Pool],
    mine: MineConfig,
    *,
    device: str = "cpu",
) -> pa.Table:
    """Return the first `mine.neighbours` images at or above `mine.floor` for each query image.

    Args:
        features_ND: Image features, normalised or not.
        pools: Where to search, and for which images. An image is not a neighbour of itself; its
            duplicates are.
        device: Of torch: where flat is searched; HNSW and IVF need "cpu".
    Returns:
        Table NEIGHBOURS, one row per pool and query image, in their order.
    """
    found = []
    for pool in pools:
        shards = make_shards([pool] if len(pool.queries_Q) else [], features_ND.shape[1], mine)
        ready = (make_ready(features_ND[each.rows_P], each.rows_P, mine) for each in shards)
        unit_QD = normalise(features_ND[pool.queries_Q], pool.queries_Q)
        found.append(search(pool.queries_Q, unit_QD, ready, mine, device=device))
    return to_table(pools, found, mine)


def to_table(pools: Sequence[Pool], found: Sequence[Keys], mine: MineConfig) -> pa.Table:
    """Return table NEIGHBOURS of the keys of all pools' queries, in their order.

    Its metadata holds S and the floor.
    """
    size = mine.neighbours
    key_QS = np.concatenate([np.empty((0, size + 1), np.int64), *found])
    there_QS = key_QS[:, :size] != NOTHING
    rows, similarities = decode(key_QS[:, :size][there_QS])
    offsets = pa.array(np.concatenate([[0], np.cumsum(there_QS.sum(axis=1))]), pa.int32())
    queries = [np.empty(0, np.int32), *(pool.queries_Q for pool in pools)]
    columns = [
        pa.array([pool.name for pool in pools for _ in pool.queries_Q], pa.string()),
        pa.array(np.concatenate(queries), pa.int32()),
        pa.ListArray.from_arrays(offsets, pa.array(rows, pa.int32())),
        pa.ListArray.from_arrays(offsets, pa.array(similarities, pa.float64())),
        pa.array(key_QS[:, size] != NOTHING),
    ]
    meta = {META: json.dumps({"neighbours": size, "floor": mine.floor})}
    return pa.Table.from_arrays(columns, schema=NEIGHBOURS).replace_schema_metadata(meta)


def rows_for(found: pa.Table, pools: pa.Array, images: pa.Array) -> pa.Array:
    """Return the rows of table NEIGHBOURS for these images, each in the pool of this name.

    Raises:
        DataError: It lacks one.
    """
    given, asked = (
        pc.binary_join_element_wise(pool, image.cast(pa.string()), "/")
        for pool, image in ((found["pool"], found["image"]), (pools, images))
    )
    rows = pc.index_in(asked, value_set=given)
    if rows.null_count:
        raise DataError(
            "the neighbours lack images of the triplets",
            do="search the neighbours of these triplets' images again",
        )
    return rows


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
    found: pa.Table, pools: Sequence[Pool], dim: int, mine: MineConfig, exact: Search, *, seed: int
) -> Searched:
    """Return the record of a search that found table NEIGHBOURS among features of size `dim`.

    HNSW and IVF have their recall measured: of `mine.recall_sample` queries, drawn by the seed, the
    neighbours are searched exactly, too.

    Args:
        exact: `find_neighbours` of the same features, e.g. `partial(find_neighbours, image_ND)`.
    """
    shards, share, asked = make_shards(pools, dim, mine), 1.0, list[Pool]()
    if mine.index != "flat":
        asked = sample(pools, mine.recall_sample, seed)
        share = recall(found, exact(asked, mine.model_copy(update={"index": "flat"})))
    largest = max((len(shard.rows_P) for shard in shards), default=0)
    return {
        "kind": mine.index,
        "shards": len(shards),
        "worker_mib": math.ceil(10 * largest * row_bytes(dim, mine) / (1 << 20)) / 10,
        "recall": round(share, 4),
        "sample": sum(len(pool.queries_Q) for pool in asked),
    }
