"""Search of one shard: scores in float32 say which pairs to measure, float64 says how similar.

Similarity means one thing here: the float64 dot product of the float32 normalised features, rounded
to 6 decimals. Scores in float32 differ by about 2e-7 with the size of the batch, because BLAS sums
in another order; so a query is searched deeper where they leave open which images are the first S.
Ties go to the lower row. HNSW and IVF are searched once: what they miss is missed.

A list of neighbours is an array of keys, similarity and row packed into one int64 that sorts by
similarity descending, then by row; lists merge by sorting. Unused entries at the end are NOTHING.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from raycd.config import MineConfig
from raycd.mine.pools import Rows

Keys = NDArray[np.int64]
Found = tuple[NDArray[np.float32], NDArray[np.int64]]
Nearest = Callable[[NDArray[np.float32], int], Found]
"""Queries (B, D), depth K -> scores (B, K), descending, and positions (B, K) in the shard; position
-1 where there is none.
"""

DECIMALS = 6
UNIT = 10**DECIMALS
NOTHING = np.iinfo(np.int64).max
# Scores are nearer than this to the similarities. The rounding errors of a float32 dot product of
# two unit vectors add up to D * 2^-24 at worst (3.8e-5 for D = 640); BLAS sums in blocks and stays
# at about 2e-7, so this leaves a factor of fifty.
NEAR = 1e-5
FAISS_GPU = hasattr(faiss, "StandardGpuResources")  # whether faiss-gpu is installed
_SPARE = 8  # searched beyond S: the image itself, one to know whether there are more, near-ties
_TILE = 1024  # images compared at once
_PAIRS = 1 << 20  # most pairs of one search, some 40 bytes each


def encode(micro: NDArray[np.int64], row: Rows) -> Keys:
    """Return the keys of similarities in millionths and rows."""
    keys: Keys = (UNIT - micro) << 32 | row
    return keys


def decode(key: Keys) -> tuple[Rows, NDArray[np.float64]]:
    """Return the rows and similarities of keys other than NOTHING."""
    return (key & 0xFFFFFFFF).astype(np.int32), (UNIT - (key >> 32)) / UNIT


def merged(one_BK: Keys, other_BK: Keys) -> Keys:
    """Return the first K keys of two sorted lists (B, K); the order of merging does not matter."""
    return np.sort(np.concatenate([one_BK, other_BK], axis=1), axis=1)[:, : one_BK.shape[1]]


@dataclass(frozen=True)
class NeighbourSearch:
    """Search among the images of one shard."""

    unit_PD: NDArray[np.float32]  # their normalised features; may be read-only
    rows_P: Rows  # their rows of the feature matrix, ascending
    mine: MineConfig
    nearest: Nearest  # by float32 scores; exact where `mine.index` is flat
    threads: int = 0  # batches searched in parallel, one thread each; 0: FAISS's number
    # Of numpy's threads all but one would only wait
    _measuring: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, rows_Q: Rows, unit_QD: NDArray[np.float32]) -> Keys:
        """Return sorted keys (Q, S + 1): the first S images at or above the floor, and one more.

        An image (`rows_Q`, with its normalised features) is not a neighbour of itself; its
        duplicates are.
        """
        depth, count = self.mine.neighbours + _SPARE, self.threads or faiss.omp_get_max_threads()
        size = max(1, min(self.mine.batch_size, _PAIRS // depth))
        rounds = -(-len(rows_Q) // (size * count))  # as many batches for each thread
        parts = np.array_split(np.arange(len(rows_Q)), min(len(rows_Q), rounds * count))
        before = torch.get_num_threads()
        # Matrix products and heaps release Python's lock: one thread measures, the others search.
        with ThreadPoolExecutor(count, initializer=_one_thread) as threads:
            found = threads.map(lambda own: self._search(rows_Q[own], unit_QD[own], depth), parts)
            key_QS = np.concatenate(list(found))
        torch.set_num_threads(before)  # MKL keeps one number for the whole process
        return key_QS

    def _search(self, rows_B: Rows, query_BD: NDArray[np.float32], depth: int) -> Keys:
        """Return keys (B, S + 1) from the `depth` best scores, or from more where they must be.

        Twice the depth for half of the queries at once: the memory stays the same.
        """
        key_BS, open_B = self._measured(rows_B, query_BD, min(depth, len(self.rows_P)))
        for half in np.array_split(np.flatnonzero(open_B), 2):
            if len(half):
                key_BS[half] = self._search(rows_B[half], query_BD[half], 2 * depth)
        return key_BS

    def _measured(
        self, rows_B: Rows, query_BD: NDArray[np.float32], depth: int
    ) -> tuple[Keys, NDArray[np.bool_]]:
        """Return keys (B, S + 1), and whether others (B,) than the `depth` best may be first."""
        size, floor = self.mine.neighbours, self.mine.floor
        score_BK, position_BK = self.nearest(query_BD, depth)
        wanted_BK = (score_BK >= floor - NEAR) & (position_BK >= 0)
        with self._measuring:
            micro_BK = similarities(query_BD, self.unit_PD, position_BK, wanted_BK.sum(axis=1))
        row_BK = self.rows_P[position_BK]
        wanted_BK &= (row_BK != rows_B[:, None]) & (micro_BK / UNIT >= floor)
        key_BK = np.full((len(rows_B), max(depth, size + 1)), NOTHING)
        key_BK[:, :depth] = np.where(wanted_BK, encode(micro_BK, row_BK), NOTHING)
        key_BS = np.sort(key_BK, axis=1)[:, : size + 1].copy()
        if self.mine.index != "flat" or depth == len(self.rows_P):
            return key_BS, np.zeros(len(rows_B), np.bool_)
        last_B, (_, of_last_B) = score_BK[:, -1], decode(key_BS[:, -2])
        full_B = (key_BS[:, -1] != NOTHING) & (last_B < of_last_B - NEAR)
        return key_BS, ~(full_B | (last_B < floor - NEAR))


def similarities(
    query_BD: NDArray[np.float32],
    unit_PD: NDArray[np.float32],
    position_BK: NDArray[np.int64],
    counts_B: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return similarities (B, K) in millionths of normalised queries and rows of `unit_PD`.

    Only the first `counts_B` of each query's `position_BK` are measured; the others are 0.
    """
    micro_BK = np.zeros(position_BK.shape, np.int64)
    # One query at a time: the features of its neighbours stay in a core's cache
    for row, count in enumerate(counts_B):
        near_KD = unit_PD[position_BK[row, :count]].astype(np.float64)
        micro_BK[row, :count] = np.rint(np.vecdot(near_KD, query_BD[row].astype(np.float64)) * UNIT)
    return micro_BK


def flat(unit_PD: NDArray[np.float32]) -> Nearest:
    """Compare queries with every image: torch multiplies, FAISS's heaps keep the best.

    `faiss.knn` does the same with its own BLAS, a tenth slower on two Intel cores.
    """
    unit = _tensor(unit_PD)

    def nearest(query_BD: NDArray[np.float32], depth: int) -> Found:
        score_BK = np.empty((len(query_BD), depth), np.float32)
        position_BK = np.empty((len(query_BD), depth), np.int64)
        heap = faiss.float_minheap_array_t()
        heap.nh, heap.k = position_BK.shape
        heap.val, heap.ids = faiss.swig_ptr(score_BK), faiss.swig_ptr(position_BK)
        heap.heapify()
        query, product = _tensor(query_BD), torch.empty(len(query_BD) * _TILE)
        for start in range(0, len(unit), _TILE):
            tile = unit[start : start + _TILE]
            score = product[: len(query) * len(tile)].view(len(query), len(tile))
            torch.mm(query, tile.T, out=score)
            # FAISS's stubs have the C++ signature with another number of arguments
            heap.addn(len(tile), faiss.swig_ptr(score.numpy()), start, 0, len(query))  # type: ignore[call-arg]
        heap.reorder()
        return score_BK, position_BK

    return nearest


def on_gpu(unit_PD: NDArray[np.float32]) -> Nearest:
    """Compare queries with every image on the GPU that holds the shard (faiss-gpu)."""
    gpu: Any = faiss
    index = gpu.GpuIndexFlatIP(gpu.StandardGpuResources(), unit_PD.shape[1])
    index.add(unit_PD)
    by_cpu, deepest = flat(unit_PD), 1024  # FAISS's limit on a GPU is 2048
    alone = threading.Lock()  # FAISS's GPU resources serve one thread at a time

    def nearest(query_BD: NDArray[np.float32], depth: int) -> Found:
        if depth > deepest:
            return by_cpu(query_BD, depth)
        with alone:
            found: Found = index.search(query_BD, depth)
        return found

    return nearest


def _tensor(array: NDArray[np.float32]) -> torch.Tensor:
    """Return a tensor over the same memory, which may be read-only: it is never written."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)


def _one_thread() -> None:
    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)
