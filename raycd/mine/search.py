"""Search of one shard: scores find the images, their similarities are measured exactly, the lists
come back as keys.

Scores in float32 differ by about 2e-7 with the size of the batch, so they only say which pairs to
measure, and a query searches deeper where they leave open which images are the first S. Ties go to
the lower row. A flat search is therefore the same however queries and shards are divided. HNSW and
IVF are searched once: what they miss is missed.
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
from raycd.mine.keys import NOTHING, UNIT, Keys, decode, encode, similarities
from raycd.mine.pools import Rows

NEAR = 1e-5  # scores are nearer than this to the similarities
_SPARE = 8  # searched beyond S: the image itself, one to know whether there are more, and near-ties
_TILE = 1024  # images compared at once
_PAIRS = 1 << 22  # most pairs of one search, which bounds its memory at 50 MB

Nearest = Callable[[NDArray[np.float32], int], tuple[NDArray[np.float32], NDArray[np.int64]]]
"""Queries (B, D), depth K -> scores (B, K) descending and places (B, K) in the shard, -1 where
there is none.
"""


class Searcher:
    """The images of a shard, and how they are searched.

    Args:
        unit_PD: Their normalised features; may be read-only, e.g. shared among processes.
        rows_P: Their rows of the feature matrix, ascending.
        mine: Neighbours (S) and floor.
        nearest: How FAISS looks for them, none missed where `mine.index` is flat; None compares
            them on the processor.
        threads: Batches searched side by side, by one thread each; 0 takes as many as FAISS would.
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
        self, rows_Q: Rows, unit_HD: NDArray[np.float32], place_Q: NDArray[np.signedinteger]
    ) -> Keys:
        """Sorted keys (Q, S + 1): the first S images at or above the floor, and one more where
        there are more.

        An image (`rows_Q`) is no neighbour of itself; its duplicates are. Its normalised features
        are `unit_HD[place_Q]`, of which no more than a batch for each thread is copied.
        """
        key_QS = np.full((len(rows_Q), self.size + 1), NOTHING)

        def search(part: NDArray[np.int64], depth: int) -> NDArray[np.int64]:
            key_BK, settled_B = self._search(rows_Q[part], unit_HD[place_Q[part]], depth)
            width = min(self.size + 1, depth)
            key_QS[part[settled_B], :width] = key_BK[settled_B, :width]
            return part[~settled_B]

        open_Q, depth = np.arange(len(rows_Q)), self.size + _SPARE
        before = torch.get_num_threads()
        # Products and heaps let go of Python's lock: while one thread measures, the others search.
        with ThreadPoolExecutor(self._threads, initializer=_one_thread) as threads:
            while len(open_Q):
                depth = min(depth, len(self.rows_P))
                parts = self._parts(open_Q, depth)
                open_Q = np.concatenate(list(threads.map(search, parts, [depth] * len(parts))))
                depth *= 2
        torch.set_num_threads(before)  # MKL's number is the whole process's
        return key_QS

    def _parts(self, open_Q: NDArray[np.int64], depth: int) -> list[NDArray[np.int64]]:
        """Batches of equal size, as many for each thread."""
        size = max(1, min(self._batch, _PAIRS // max(1, depth)))
        rounds = -(-len(open_Q) // (size * self._threads))
        return np.array_split(open_Q, min(len(open_Q), rounds * self._threads))

    def _search(
        self, rows_B: Rows, query_BD: NDArray[np.float32], depth: int
    ) -> tuple[Keys, NDArray[np.bool_]]:
        """Sorted keys (B, depth) of the images at or above the floor, and which lists (B,) are
        certain to be right.
        """
        if depth == 0:
            return np.empty((len(rows_B), 0), np.int64), np.ones(len(rows_B), np.bool_)
        score_BK, place_BK = self._nearest(query_BD, depth)
        enough_B = np.full(len(rows_B), self.floor - NEAR, np.float32)
        if (
            depth > self.size + 1
        ):  # what is surely behind the first S + 1 others need not be measured
            np.maximum(enough_B, score_BK[:, self.size + 1] - 2 * NEAR, out=enough_B)
        wanted_BK = (score_BK >= enough_B[:, None]) & (place_BK >= 0)
        with self._measuring:
            micro_BK = similarities(query_BD, self.unit_PD, place_BK, wanted_BK.sum(axis=1))
        row_BK = self.rows_P[place_BK]
        wanted_BK &= (row_BK != rows_B[:, None]) & (micro_BK / UNIT >= self.floor)
        key_BK = np.where(wanted_BK, encode(micro_BK, row_BK), NOTHING)
        key_BK.sort(axis=1)
        return key_BK, self._settled(key_BK, score_BK[:, -1], depth)

    def _settled(self, key_BK: Keys, last_B: NDArray[np.float32], depth: int) -> NDArray[np.bool_]:
        """Whether nothing beyond the search, all of it at `last_B` or below, can belong to the
        first S.
        """
        if not self._exact or depth == len(self.rows_P):
            return np.ones(len(key_BK), np.bool_)
        settled_B: NDArray[np.bool_] = last_B < self.floor - NEAR
        if depth > self.size:
            of_last = decode(key_BK[:, self.size - 1])[1]
            settled_B |= (key_BK[:, self.size] != NOTHING) & (last_B < of_last - NEAR)
        return settled_B


def flat(unit_PD: NDArray[np.float32]) -> Nearest:
    """Compares a query with every image: torch multiplies, FAISS's heaps keep the best.

    `faiss.knn` does the same with its own BLAS, which takes a tenth longer on two cores of an Intel
    processor.
    """
    unit = _tensor(unit_PD)

    def nearest(
        query_BD: NDArray[np.float32], depth: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        score_BK = np.empty((len(query_BD), depth), np.float32)
        place_BK = np.empty((len(query_BD), depth), np.int64)
        heap = faiss.float_minheap_array_t()
        heap.nh, heap.k = place_BK.shape
        heap.val, heap.ids = faiss.swig_ptr(score_BK), faiss.swig_ptr(place_BK)
        heap.heapify()
        query, product = _tensor(query_BD), torch.empty(len(query_BD) * _TILE)
        for start in range(0, len(unit), _TILE):
            tile = unit[start : start + _TILE]
            score = torch.mm(
                query, tile.T, out=product[: len(query) * len(tile)].view(len(query), len(tile))
            )
            heap.addn(len(tile), faiss.swig_ptr(score.numpy()), start, 0, len(query))  # type: ignore[call-arg]
        heap.reorder()
        return score_BK, place_BK

    return nearest


def _tensor(array: NDArray[np.float32]) -> torch.Tensor:
    """The same memory, which nobody writes to, though it may be read-only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)


def _one_thread() -> None:
    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)


FAISS_GPU = hasattr(faiss, "StandardGpuResources")  # whether faiss-gpu is installed


def on_gpu(unit_PD: NDArray[np.float32]) -> Nearest:
    """Compares a query with every image on the worker's GPU, which holds the shard (faiss-gpu)."""
    gpu: Any = faiss
    index = gpu.GpuIndexFlatIP(gpu.StandardGpuResources(), unit_PD.shape[1])
    index.add(unit_PD)
    by_cpu, deepest = flat(unit_PD), 1024  # FAISS's limit on a GPU is 2048
    alone = threading.Lock()

    def nearest(
        query_BD: NDArray[np.float32], depth: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        if depth > deepest:
            return by_cpu(query_BD, depth)
        with alone:
            found: tuple[NDArray[np.float32], NDArray[np.int64]] = index.search(query_BD, depth)
        return found

    return nearest
