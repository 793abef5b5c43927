"""Search of one shard: FAISS finds candidates, their similarities are measured exactly.

Similarity means one thing here: the float64 dot product of the float32 normalised features, rounded
to 6 decimals. Scores in float32 differ by about 2e-7 with the size of the batch, because BLAS sums
in another order. So they only say which pairs to measure, and a query is searched deeper where they
leave open which images are the first S. Ties go to the lower row. A flat search therefore gives the
same result however queries and shards are divided. HNSW and IVF are searched once: what they miss
is missed.

A list of neighbours is an array of keys: similarity and row packed into one int64, so that lists
merge by sorting. Keys sort by similarity descending, then by row: the high half holds the
millionths below 1, the low half the row. Unused entries at the end of a list are NOTHING.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from raycd.config import MineConfig
from raycd.mine.pools import Rows

Keys = NDArray[np.int64]

DECIMALS = 6
UNIT = 10**DECIMALS
NOTHING = np.iinfo(np.int64).max

# Scores are nearer than this to the similarities. The rounding errors of a float32 dot product of
# two unit vectors add up to D * 2^-24 at worst (3.8e-5 for D = 640); BLAS sums in blocks and stays
# at about 2e-7, so this leaves a factor of fifty.
NEAR = 1e-5
_SPARE = 8  # searched beyond S: the image itself, one to know whether there are more, near-ties
_TILE = 1024  # images compared at once
_PAIRS = 1 << 22  # most pairs of one search: float32 score + int64 position, 12 bytes each, 50 MB

Nearest = Callable[[NDArray[np.float32], int], tuple[NDArray[np.float32], NDArray[np.int64]]]
"""Queries (B, D), depth K -> scores (B, K), descending, and positions (B, K) in the shard; position
-1 where there is none.
"""


def encode(micro: NDArray[np.int64], row: Rows) -> Keys:
    """Return the keys of similarities in millionths and rows."""
    keys: Keys = (UNIT - micro) << 32 | row
    return keys


def decode(key: Keys) -> tuple[Rows, NDArray[np.float64]]:
    """Return the rows and similarities of keys other than NOTHING."""
    return (key & 0xFFFFFFFF).astype(np.int32), (UNIT - (key >> 32)) / UNIT


def merged(one_BK: Keys, other_BK: Keys) -> Keys:
    """Return the first K keys of two sorted lists (B, K); the order of merging does not matter."""
    both = np.concatenate([one_BK, other_BK], axis=1)
    both.sort(axis=1)
    return both[:, : one_BK.shape[1]]


def similarities(
    query_BD: NDArray[np.float32],
    unit_PD: NDArray[np.float32],
    position_BK: NDArray[np.int64],
    counts_B: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return similarities (B, K) in millionths of normalised queries and rows of `unit_PD`.

    Of each query the first `counts_B` of its `position_BK` are measured in float64; the others are
    0.
    """
    micro_BK = np.zeros(position_BK.shape, np.int64)
    narrow, wide = (
        np.empty((position_BK.shape[1], unit_PD.shape[1]), kind)
        for kind in (np.float32, np.float64)
    )
    # One query at a time: the features of its neighbours stay in a core's cache
    for row, count in enumerate(counts_B):
        np.take(unit_PD, position_BK[row, :count], axis=0, out=narrow[:count], mode="clip")
        np.copyto(wide[:count], narrow[:count])
        micro_BK[row, :count] = np.rint(
            np.vecdot(wide[:count], query_BD[row].astype(np.float64)) * UNIT
        )
    return micro_BK


class NeighbourSearch:
    """Search among the images of one shard.

    Args:
        unit_PD: Their normalised features; may be read-only, e.g. shared among processes.
        rows_P: Their rows of the feature matrix, ascending.
        mine: Neighbours (S) and floor.
        nearest: Search by float32 scores, exact where `mine.index` is flat; None compares a query
            with every image on the CPU.
        threads: Batches searched in parallel, one thread each; 0 takes FAISS's number of threads.
    """

    def __init__(
        self,
        unit_PD: NDArray[np.float32],
        rows_P: Rows,
        mine: MineConfig,
        nearest: Nearest | None = None,
        *,
        threads: int = 0,
    ) -> None:
        self.unit_PD, self.rows_P = unit_PD, rows_P
        self.size, self.floor, self._batch = mine.neighbours, mine.floor, mine.batch_size
        self._threads = threads or faiss.omp_get_max_threads()
        self._measuring = threading.Lock()  # numpy's threads would only wait for one another
        self._exact, self._nearest = mine.index == "flat", nearest or flat(unit_PD)

    def __call__(
        self, rows_Q: Rows, unit_HD: NDArray[np.float32], position_Q: NDArray[np.signedinteger]
    ) -> Keys:
        """Return sorted keys (Q, S + 1): the first S images at or above the floor, and one more.

        An image (`rows_Q`) is not a neighbour of itself; its duplicates are. Its normalised
        features are `unit_HD[position_Q]`, of which only one batch a thread is copied.
        """
        key_QS = np.full((len(rows_Q), self.size + 1), NOTHING)

        def search(part: NDArray[np.int64], depth: int) -> NDArray[np.int64]:
            key_BK, settled_B = self._search(rows_Q[part], unit_HD[position_Q[part]], depth)
            width = min(self.size + 1, depth)
            key_QS[part[settled_B], :width] = key_BK[settled_B, :width]
            return part[~settled_B]

        open_Q, depth = np.arange(len(rows_Q)), self.size + _SPARE
        before = torch.get_num_threads()
        # Matrix products and heaps release Python's lock: one thread measures, the others search.
        with ThreadPoolExecutor(self._threads, initializer=_one_thread) as threads:
            while len(open_Q):
                depth = min(depth, len(self.rows_P))
                parts = self._parts(open_Q, depth)
                open_Q = np.concatenate(list(threads.map(search, parts, [depth] * len(parts))))
                depth *= 2
        torch.set_num_threads(before)  # MKL keeps one number for the whole process
        return key_QS

    def _parts(self, open_Q: NDArray[np.int64], depth: int) -> list[NDArray[np.int64]]:
        """Divide queries into batches of equal size, the same number for each thread."""
        size = max(1, min(self._batch, _PAIRS // max(1, depth)))
        rounds = -(-len(open_Q) // (size * self._threads))
        return np.array_split(open_Q, min(len(open_Q), rounds * self._threads))

    def _search(
        self, rows_B: Rows, query_BD: NDArray[np.float32], depth: int
    ) -> tuple[Keys, NDArray[np.bool_]]:
        """Return sorted keys (B, depth) at or above the floor, and which lists (B,) are final."""
        if depth == 0:
            return np.empty((len(rows_B), 0), np.int64), np.ones(len(rows_B), np.bool_)
        score_BK, position_BK = self._nearest(query_BD, depth)
        enough_B = np.full(len(rows_B), self.floor - NEAR, np.float32)
        if depth > self.size + 1:
            # At least S + 1 other images score this much, so what is clearly below (both scores
            # may be off by NEAR) cannot be among the first S + 1 and need not be measured.
            np.maximum(enough_B, score_BK[:, self.size + 1] - 2 * NEAR, out=enough_B)
        wanted_BK = (score_BK >= enough_B[:, None]) & (position_BK >= 0)
        with self._measuring:
            micro_BK = similarities(query_BD, self.unit_PD, position_BK, wanted_BK.sum(axis=1))
        row_BK = self.rows_P[position_BK]
        wanted_BK &= (row_BK != rows_B[:, None]) & (micro_BK / UNIT >= self.floor)
        key_BK = np.where(wanted_BK, encode(micro_BK, row_BK), NOTHING)
        key_BK.sort(axis=1)
        return key_BK, self._settled(key_BK, score_BK[:, -1], depth)

    def _settled(self, key_BK: Keys, last_B: NDArray[np.float32], depth: int) -> NDArray[np.bool_]:
        """Return which lists (B,) are final: no score below `last_B` belongs to the first S."""
        if not self._exact or depth == len(self.rows_P):
            return np.ones(len(key_BK), np.bool_)
        settled_B: NDArray[np.bool_] = last_B < self.floor - NEAR
        if depth > self.size:
            of_last = decode(key_BK[:, self.size - 1])[1]
            settled_B |= (key_BK[:, self.size] != NOTHING) & (last_B < of_last - NEAR)
        return settled_B


def flat(unit_PD: NDArray[np.float32]) -> Nearest:
    """Compare queries with every image: torch multiplies, FAISS's heaps keep the best.

    `faiss.knn` does the same with its own BLAS, a tenth slower on two Intel cores.
    """
    unit = _tensor(unit_PD)

    def nearest(
        query_BD: NDArray[np.float32], depth: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        score_BK = np.empty((len(query_BD), depth), np.float32)
        position_BK = np.empty((len(query_BD), depth), np.int64)
        heap = faiss.float_minheap_array_t()
        heap.nh, heap.k = position_BK.shape
        heap.val, heap.ids = faiss.swig_ptr(score_BK), faiss.swig_ptr(position_BK)
        heap.heapify()
        query, product = _tensor(query_BD), torch.empty(len(query_BD) * _TILE)
        for start in range(0, len(unit), _TILE):
            tile = unit[start : start + _TILE]
            score = torch.mm(
                query, tile.T, out=product[: len(query) * len(tile)].view(len(query), len(tile))
            )
            # FAISS's stubs have the C++ signature with another number of arguments
            heap.addn(len(tile), faiss.swig_ptr(score.numpy()), start, 0, len(query))  # type: ignore[call-arg]
        heap.reorder()
        return score_BK, position_BK

    return nearest


def _tensor(array: NDArray[np.float32]) -> torch.Tensor:
    """Return a tensor over the same memory, which may be read-only: it is never written."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)


def _one_thread() -> None:
    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)


FAISS_GPU = hasattr(faiss, "StandardGpuResources")  # whether faiss-gpu is installed


def on_gpu(unit_PD: NDArray[np.float32]) -> Nearest:
    """Compare queries with every image on the GPU that holds the shard (faiss-gpu)."""
    gpu: Any = faiss
    index = gpu.GpuIndexFlatIP(gpu.StandardGpuResources(), unit_PD.shape[1])
    index.add(unit_PD)
    by_cpu, deepest = flat(unit_PD), 1024  # FAISS's limit on a GPU is 2048
    alone = threading.Lock()  # FAISS's GPU resources serve one thread at a time

    def nearest(
        query_BD: NDArray[np.float32], depth: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        if depth > deepest:
            return by_cpu(query_BD, depth)
        with alone:
            found: tuple[NDArray[np.float32], NDArray[np.int64]] = index.search(query_BD, depth)
        return found

    return nearest
