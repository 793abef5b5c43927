"""HNSW and IVF: FAISS's structures that find neighbours among millions without comparing a query
with all of them.

They miss some, so whoever uses them measures the recall against exact search. Built by one thread
and from one seed: the same vectors give the same structure.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from raycd.config import MineConfig

PER_LIST = 39  # images of an IVF list at least: FAISS asks for so many to place its centre

_faiss: Any = faiss  # its types lack what is used here


def build(
    unit_PD: NDArray[np.float32], settings: MineConfig, *, seed: int = 0
) -> NDArray[np.uint8]:
    """The serialised structure `settings.index` of normalised vectors (P, D); `opened` searches it."""
    with one_thread():
        if settings.index == "hnsw":
            index = hnsw(
                unit_PD.shape[1], settings.hnsw_m, max(settings.hnsw_ef, 2 * settings.hnsw_m)
            )
        else:
            index = ivf(unit_PD, lists(len(unit_PD), settings.ivf_lists), seed=seed)
        index.add(unit_PD)
    serialised: NDArray[np.uint8] = faiss.serialize_index(index)
    return serialised


@contextmanager
def one_thread() -> Iterator[None]:
    """FAISS with one thread: with more, an HNSW graph depends on which of them came first."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def hnsw(dim: int, links: int, build_ef: int) -> Any:
    """An empty HNSW graph: `links` of a vector (M), `build_ef` candidates for them
    (efConstruction).
    """
    index: Any = faiss.IndexHNSWFlat(dim, links, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = build_ef
    return index


def lists(count: int, asked: int = 0) -> int:
    """IVF lists of so many vectors: as asked, else 4 times their root; never so many that a list
    has too few.
    """
    return min(asked or round(4 * count**0.5), max(1, count // PER_LIST))


def ivf(
    unit_PD: NDArray[np.float32],
    lists: int,
    *,
    seed: int = 0,
    most: int = 256,
    compressed: bool = False,
) -> Any:
    """Empty IVF lists, their centres by k-means on at most `most` vectors a list, drawn by the
    seed.

    `compressed` lists hold a byte for each number of a vector instead of four.
    """
    dim = unit_PD.shape[1]
    centres = faiss.IndexFlatIP(dim)
    if compressed:
        bits = faiss.ScalarQuantizer.QT_8bit
        index: Any = faiss.IndexIVFScalarQuantizer(
            centres, dim, lists, bits, faiss.METRIC_INNER_PRODUCT
        )
    else:
        index = faiss.IndexIVFFlat(centres, dim, lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed, index.cp.max_points_per_centroid = 1234 + seed, most
    index.train(unit_PD)
    return index


def selector(mask: NDArray[np.bool_]) -> Any:
    """The vectors of a mask, as FAISS's searches take them."""
    return _faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))


class Opened:
    """A structure that `build` made, read where it lies: processes that share the bytes share the
    memory.
    """

    def __init__(self, serialised: NDArray[np.uint8], settings: MineConfig) -> None:
        self._bytes, self._reader = (
            serialised,
            _faiss.ZeroCopyIOReader(faiss.swig_ptr(serialised), serialised.nbytes),
        )
        self._index: Any = faiss.read_index(self._reader, faiss.IO_FLAG_MMAP_IFC)
        self._settings = settings

    def __call__(
        self, query_BD: NDArray[np.float32], depth: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Queries (B, D) -> scores (B, depth) descending and places (B, depth), -1 where fewer were
        found.
        """
        if self._settings.index == "hnsw":
            effort = _faiss.SearchParametersHNSW(efSearch=max(self._settings.hnsw_ef, depth))
        else:
            effort = _faiss.SearchParametersIVF(nprobe=self._settings.ivf_probes)
        found: tuple[NDArray[np.float32], NDArray[np.int64]] = self._index.search(
            query_BD, depth, params=effort
        )
        return found
