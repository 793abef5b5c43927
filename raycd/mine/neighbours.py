"""Neighbours: for each query image the S most similar images of its pool (eqs 8, 9 at their loosest), exactly.

Similarity here means one thing: the float64 dot product of the float32 normalised features, rounded to 6 decimals.
FAISS finds the images; its own scores differ by about 2e-7 with the size of the batch, so they only say which pairs to
measure, and a row is searched deeper where they leave open which images are the first S. Ties go to the lower row.
The result is therefore the same however the queries are divided.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raycd.config import MineConfig
from raycd.errors import DataError
from raycd.mine.pools import Pool, Rows
from raycd.progress import Bar

DECIMALS = 6
NEAR = 1e-5  # FAISS's scores are nearer than this to the similarities
META = b"raycd.mine"  # key of the tables' metadata: JSON
_UNIT = 10**DECIMALS
_NOTHING = np.iinfo(np.int64).max
_SPARE = 8  # searched beyond S: the image itself, one to know whether there are more, and near-ties
_PAIRS = 1 << 22  # most pairs of one search, which bounds its memory at 50 MB
_BLOCK = 2  # query rows measured at once: their neighbours' features stay in a core's cache

NEIGHBOURS = pa.schema(
    [
        pa.field("pool", pa.string(), nullable=False),  # "" for all train images, else the category
        pa.field("image", pa.int32(), nullable=False),  # row of the features; the query
        pa.field("neighbours", pa.list_(pa.int32()), nullable=False),  # rows, by similarity descending, then row
        pa.field("similarities", pa.list_(pa.float64()), nullable=False),  # cosine, rounded to 6 decimals
        pa.field("truncated", pa.bool_(), nullable=False),  # more than S images are at or above the floor
    ]
)


def find_neighbours(features_ND: NDArray[np.float32], pools: Sequence[Pool], mine: MineConfig) -> pa.Table:
    """The first `mine.neighbours` images at or above `mine.floor`, for each query image of each pool.

    Args:
        features_ND: Image features, normalised or not.
        pools: Where to search, and for which images. An image is no neighbour of itself; its duplicates are.
    Returns:
        Table NEIGHBOURS, one row per pool and query image, in their order.
    """
    searcher = Searcher(normalise(features_ND), pools, mine)
    found = []
    with Bar("neighbours", total=sum(len(pool.queries_Q) for pool in pools), unit="images") as bar:
        for batch in batches(pools, mine.batch_size):
            found.append(searcher(batch))
            bar.advance(len(batch))
    return collect(found, pools, mine)


def batches(pools: Sequence[Pool], size: int) -> Iterator[pa.Table]:
    """The queries of all pools as tables (pool, image) of at most `size` rows, each of one pool."""
    for pool in pools:
        for start in range(0, len(pool.queries_Q), size):
            queries_B = pool.queries_Q[start : start + size]
            yield pa.table([_constant(pool.name, len(queries_B)), pa.array(queries_B, pa.int32())], ["pool", "image"])


def normalise(features_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    """Features (N, D) of length 1; a row of zeros stays zero, at similarity 0 to all."""
    unit_ND = np.empty(features_ND.shape, np.float32)
    for start in range(0, len(features_ND), 4096):
        block = features_ND[start : start + 4096].astype(np.float64)
        norm = np.sqrt(np.einsum("nd,nd->n", block, block))
        if not np.isfinite(norm).all():
            row = start + int(np.flatnonzero(~np.isfinite(norm))[0])
            raise DataError(f"the features of row {row} are not finite", do="embed again; the encoder may be broken")
        unit_ND[start : start + 4096] = block / np.where(norm > 0, norm, 1)[:, None]
    return unit_ND


class Searcher:
    """Answers queries of one process. Holds no copy of the features, but for the pool that it searched last.

    Args:
        unit_ND: Normalised features; may be read-only, e.g. shared among processes.
        pools: Where to search.
        mine: Neighbours and floor.
    """

    def __init__(self, unit_ND: NDArray[np.float32], pools: Sequence[Pool], mine: MineConfig) -> None:
        self.unit_ND, self.size, self.floor = unit_ND, mine.neighbours, mine.floor
        self.rows = {pool.name: pool.rows_P for pool in pools}
        self._name: str | None = None
        self._pool_PD = unit_ND

    def __call__(self, queries: pa.Table) -> pa.Table:
        """Table NEIGHBOURS of queries (pool, image)."""
        pool_Q, image_Q = np.asarray(queries["pool"].to_pylist(), dtype=object), queries["image"].to_numpy()
        return pa.concat_tables([self._of(name, image_Q[pool_Q == name]) for name in dict.fromkeys(pool_Q)])

    def _of(self, pool: str, queries_Q: Rows) -> pa.Table:
        if self._name != pool:
            rows = self.rows[pool]
            self._pool_PD = self.unit_ND if len(rows) == len(self.unit_ND) else self.unit_ND[rows]
            self._name = pool
        key_QS = np.full((len(queries_Q), self.size), _NOTHING)
        truncated_Q = np.zeros(len(queries_Q), np.bool_)
        open_Q, depth = np.arange(len(queries_Q)), self.size + _SPARE
        while len(open_Q):
            depth = min(depth, len(self._pool_PD))
            unsettled = []
            for part in np.array_split(open_Q, 1 + len(open_Q) * depth // _PAIRS):
                key_BK, settled_B = self._search(queries_Q[part], self.rows[pool], depth)
                done, width = part[settled_B], min(self.size, depth)
                key_QS[done, :width] = key_BK[settled_B, :width]
                truncated_Q[done] = (key_BK[settled_B] != _NOTHING).sum(axis=1) > self.size
                unsettled.append(part[~settled_B])
            open_Q, depth = np.concatenate(unsettled), depth * 2
        return _table(pool, queries_Q, key_QS, truncated_Q)

    def _search(self, queries_B: Rows, rows_P: Rows, depth: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Sorted keys (B, depth) of the images at or above the floor, and which rows (B,) are certain to be right."""
        if depth == 0:
            return np.empty((len(queries_B), 0), np.int64), np.ones(len(queries_B), np.bool_)
        score_BK, place_BK = faiss.knn(self.unit_ND[queries_B], self._pool_PD, depth, metric=faiss.METRIC_INNER_PRODUCT)
        row_BK = rows_P[place_BK]
        wanted_BK = score_BK >= self.floor - NEAR
        micro_BK = _similarities(self.unit_ND, queries_B, row_BK, wanted_BK.sum(axis=1))
        wanted_BK &= (row_BK != queries_B[:, None]) & (micro_BK / _UNIT >= self.floor)
        key_BK = np.where(wanted_BK, (_UNIT - micro_BK) << 32 | row_BK, _NOTHING)
        key_BK.sort(axis=1)
        last_B = score_BK[:, -1]
        settled_B = (last_B < self.floor - NEAR) | (depth == len(rows_P))
        if depth > self.size:  # S found, and nothing beyond the search comes near the last of them
            of_last = _decode(key_BK[:, self.size - 1])[1]
            settled_B |= (key_BK[:, self.size] != _NOTHING) & (last_B < of_last - NEAR)
        return key_BK, settled_B


def collect(found: Iterable[pa.Table], pools: Sequence[Pool], mine: MineConfig) -> pa.Table:
    """One table NEIGHBOURS from parts in any order: by pool, then image. Its metadata names S and the floor."""
    table = pa.concat_tables([NEIGHBOURS.empty_table(), *found]).combine_chunks()
    order = {pool.name: place for place, pool in enumerate(pools)}
    pool_Q = np.array([order[name] for name in table["pool"].to_pylist()], np.int64)
    table = table.take(np.lexsort((table["image"].to_numpy(), pool_Q)))
    meta = {"neighbours": mine.neighbours, "floor": mine.floor}
    return table.cast(NEIGHBOURS).replace_schema_metadata({META: json.dumps(meta)})


def _similarities(
    unit_ND: NDArray[np.float32], queries_B: Rows, row_BK: Rows, counts_B: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Similarities in millionths (B, K) of each query with the first `counts_B` of its rows; the rest is undefined."""
    micro_BK = np.zeros(row_BK.shape, np.int64)

    def measure(span_B: NDArray[np.int64]) -> None:
        for start in range(span_B[0], span_B[-1] + 1, _BLOCK):
            block = slice(start, min(start + _BLOCK, span_B[-1] + 1))
            width = int(counts_B[block].max())
            query = unit_ND[queries_B[block]].astype(np.float64)
            others = unit_ND[row_BK[block, :width]].astype(np.float64)
            micro_BK[block, :width] = np.rint(np.einsum("bkd,bd->bk", others, query) * _UNIT)

    workers = faiss.omp_get_max_threads()
    with ThreadPoolExecutor(workers) as threads:
        list(threads.map(measure, np.array_split(np.arange(len(queries_B)), min(workers, len(queries_B)))))
    return micro_BK


def _decode(key: NDArray[np.int64]) -> tuple[Rows, NDArray[np.float64]]:
    """Keys sort by similarity descending, then row: millionths below 1 in the high half, the row in the low one."""
    return (key & 0xFFFFFFFF).astype(np.int32), (_UNIT - (key >> 32)) / _UNIT


def _table(pool: str, queries_Q: Rows, key_QS: NDArray[np.int64], truncated_Q: NDArray[np.bool_]) -> pa.Table:
    there = key_QS != _NOTHING
    row, similarity = _decode(key_QS[there])
    offsets = pa.array(np.concatenate([[0], np.cumsum(there.sum(axis=1))]), pa.int32())
    columns = [
        _constant(pool, len(queries_Q)),
        pa.array(queries_Q, pa.int32()),
        pa.ListArray.from_arrays(offsets, pa.array(row, pa.int32())),
        pa.ListArray.from_arrays(offsets, pa.array(similarity, pa.float64())),
        pa.array(truncated_Q),
    ]
    return pa.Table.from_arrays(columns, schema=NEIGHBOURS)


def _constant(text: str, length: int) -> pa.Array:
    return pa.repeat(pa.scalar(text, pa.string()), length)
