"""Neighbours: for each query image the S most similar images of its pool.

These are eqs 8 and 9 at their loosest. The search is exact unless `mine.index` says otherwise, and
then the same for any number of batches, shards and workers, in any order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raycd.config import MineConfig
from raycd.errors import DataError
from raycd.index import approximate
from raycd.mine.pools import Pool, Rows
from raycd.mine.search import NOTHING, Keys, Nearest, NeighbourSearch, decode, merged
from raycd.mine.shards import make_shards, visits
from raycd.progress import Bar

LARGEST = 32  # batches that a search gets at once, for all of its threads
_BLOCK = 512  # rows normalised at once: they stay in a core's cache
META = b"raycd.mine"  # key of the tables' metadata: JSON

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
    lists, held, search = Lists(pools, mine), -1, None
    shards = make_shards(pools, features_ND.shape[1], mine)
    todo = list(visits(pools, shards, LARGEST * mine.batch_size))
    with Bar("neighbours", total=sum(len(visit.rows_B) for visit in todo), unit="images") as bar:
        for visit in todo:
            rows_P = shards[visit.shard].rows_P
            if search is None or held != visit.shard:
                unit_PD = normalise(features_ND, rows_P)
                by = nearest(unit_PD) if nearest else _by_setting(unit_PD, mine)
                held, search = visit.shard, NeighbourSearch(unit_PD, rows_P, mine, by)
            queries_BD = normalise(features_ND, visit.rows_B)
            lists.add(visit.query_B, search(visit.rows_B, queries_BD, np.arange(len(queries_BD))))
            bar.advance(len(visit.rows_B))
    return lists.table()


def _by_setting(unit_PD: NDArray[np.float32], mine: MineConfig) -> Nearest | None:
    return (
        None if mine.index == "flat" else approximate.Opened(approximate.build(unit_PD, mine), mine)
    )


def normalise(
    features_ND: NDArray[np.float32], rows: Rows | None = None, *, numbers: Rows | None = None
) -> NDArray[np.float32]:
    """Return features of the rows (None: all) at length 1; zeros stay zero, similar to none.

    The norm is computed in float64, so that the rounding of its sum does not show in float32.
    Raises DataError where one is not finite; `numbers` are the rows' own where they are a part.
    """
    own = features_ND if rows is None else features_ND[_span(rows)]
    unit = np.empty(own.shape, np.float32)

    def scale(start: int) -> None:
        block = own[start : start + _BLOCK].astype(np.float64)
        norm = np.sqrt(np.einsum("nd,nd->n", block, block))
        if not np.isfinite(norm).all():
            row = start + int(np.flatnonzero(~np.isfinite(norm))[0])
            named = rows if numbers is None else numbers
            row = row if named is None else int(named[row])
            raise DataError(
                f"the features of row {row} are not finite",
                do="embed again; the encoder may be broken",
            )
        block /= np.where(norm > 0, norm, 1)[:, None]
        unit[start : start + _BLOCK] = block

    with ThreadPoolExecutor(faiss.omp_get_max_threads()) as threads:
        list(threads.map(scale, range(0, len(own), _BLOCK)))
    return unit


def _span(rows: Rows) -> Rows | slice:
    """Return consecutive rows as a slice, which copies nothing."""
    follow = len(rows) > 0 and int(rows[-1]) - int(rows[0]) + 1 == len(rows)
    return slice(int(rows[0]), int(rows[-1]) + 1) if follow else rows


class Lists:
    """The neighbours of all queries while shards are searched, in any order."""

    def __init__(self, pools: Sequence[Pool], mine: MineConfig) -> None:
        self._pools, self._mine = pools, mine
        self._key_QS = np.full(
            (sum(len(pool.queries_Q) for pool in pools), mine.neighbours + 1), NOTHING
        )

    def add(self, query_B: NDArray[np.int64], key_BS: Keys) -> None:
        """Merge sorted keys (B, S + 1) that one shard gave for the queries `query_B`, each once."""
        for start in range(0, len(key_BS), _BLOCK):
            own = query_B[start : start + _BLOCK]
            self._key_QS[own] = merged(self._key_QS[own], key_BS[start : start + _BLOCK])

    def table(self) -> pa.Table:
        """Return table NEIGHBOURS by pool, then image. Its metadata holds S and the floor."""
        size, starts = (
            self._mine.neighbours,
            np.cumsum([0, *(len(pool.queries_Q) for pool in self._pools)]),
        )
        parts = [
            _table(pool, self._key_QS[start : start + len(pool.queries_Q)], size)
            for pool, start in zip(self._pools, starts, strict=False)
        ]
        meta = {"neighbours": size, "floor": self._mine.floor}
        table = pa.concat_tables([NEIGHBOURS.empty_table(), *parts]).combine_chunks()
        return table.replace_schema_metadata({META: json.dumps(meta)})


def recall(found: pa.Table, exact: pa.Table) -> float:
    """Return the share of the neighbours in `exact` that `found` has; 1 where there are none."""
    lists = {
        (row["pool"], row["image"]): row["neighbours"] for row in found.select(_LISTS).to_pylist()
    }
    hits = wanted = 0
    for row in exact.select(_LISTS).to_pylist():
        hits += len(set(row["neighbours"]) & set(lists[row["pool"], row["image"]]))
        wanted += len(row["neighbours"])
    return hits / wanted if wanted else 1.0


def sample(pools: Sequence[Pool], count: int, seed: int) -> list[Pool]:
    """Return the same pools with about `count` queries in all, drawn by the seed."""
    total = sum(len(pool.queries_Q) for pool in pools)
    rng = np.random.default_rng([seed, 8])
    chosen = np.zeros(total, np.bool_)
    chosen[rng.permutation(total)[:count]] = True
    drawn, first = [], 0
    for pool in pools:
        own = chosen[first : first + len(pool.queries_Q)]
        drawn.append(Pool(pool.name, pool.rows_P, pool.queries_Q[own]))
        first += len(own)
    return drawn


_LISTS = ["pool", "image", "neighbours"]


def _table(pool: Pool, key_QS: Keys, size: int) -> pa.Table:
    there = key_QS[:, :size] != NOTHING
    row, similarity = decode(key_QS[:, :size][there])
    offsets = pa.array(np.concatenate([[0], np.cumsum(there.sum(axis=1))]), pa.int32())
    columns = [
        pa.repeat(pa.scalar(pool.name, pa.string()), len(key_QS)),
        pa.array(pool.queries_Q, pa.int32()),
        pa.ListArray.from_arrays(offsets, pa.array(row, pa.int32())),
        pa.ListArray.from_arrays(offsets, pa.array(similarity, pa.float64())),
        pa.array(key_QS[:, size] != NOTHING),
    ]
    return pa.Table.from_arrays(columns, schema=NEIGHBOURS)
