"""HNSW and IVF: FAISS's structures that find neighbours among millions without comparing a query with all of them.

They miss some, so whoever uses them measures the recall against exact search. Built by one thread and from one seed:
the same vectors give the same structure.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from raycd.config import MineConfig

PER_LIST = 39  # images of an IVF list at least: FAISS asks for so many to place its centre

_faiss: Any = faiss  # its types lack what is used here


def build(unit_PD: NDArray[np.float32], settings: MineConfig, *, seed: int = 0) -> NDArray[np.uint8]:
    """The serialised structure `settings.index` of normalised vectors (P, D); `opened` searches it."""
    dim = unit_PD.shape[1]
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # with more, an HNSW graph depends on which of them came first
    try:
        if settings.index == "hnsw":
            index: Any = faiss.IndexHNSWFlat(dim, settings.hnsw_m, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = max(settings.hnsw_ef, 2 * settings.hnsw_m)
        else:
            lists = min(settings.ivf_lists or round(4 * len(unit_PD) ** 0.5), max(1, len(unit_PD) // PER_LIST))
            index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT)
            index.cp.seed = 1234 + seed
            index.train(unit_PD)
        index.add(unit_PD)
    finally:
        faiss.omp_set_num_threads(threads)
    serialised: NDArray[np.uint8] = faiss.serialize_index(index)
    return serialised


class Opened:
    """A structure that `build` made, read where it lies: processes that share the bytes share the memory."""

    def __init__(self, serialised: NDArray[np.uint8], settings: MineConfig) -> None:
        self._bytes, self._reader = serialised, _faiss.ZeroCopyIOReader(faiss.swig_ptr(serialised), serialised.nbytes)
        self._index: Any = faiss.read_index(self._reader, faiss.IO_FLAG_MMAP_IFC)
        self._settings = settings

    def __call__(self, query_BD: NDArray[np.float32], depth: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Queries (B, D) -> scores (B, depth) descending and places (B, depth), -1 where fewer were found."""
        if self._settings.index == "hnsw":
            effort = _faiss.SearchParametersHNSW(efSearch=max(self._settings.hnsw_ef, depth))
        else:
            effort = _faiss.SearchParametersIVF(nprobe=self._settings.ivf_probes)
        found: tuple[NDArray[np.float32], NDArray[np.int64]] = self._index.search(query_BD, depth, params=effort)
        return found
