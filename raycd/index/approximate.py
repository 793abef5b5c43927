"""HNSW and IVF: FAISS's structures that search millions without comparing a query with all of them.

They miss some neighbours, so their users measure the recall against exact search. Built by one
thread and from one seed: the same vectors give the same structure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from raycd.config import MineConfig

# Fewest images for one IVF list. FAISS's k-means warns below 39 training vectors a centre
# (ClusteringParameters.min_points_per_centroid), because centres of fewer follow single vectors.
PER_LIST = 39

_faiss: Any = faiss  # its types lack what is used here


def build(
    unit_PD: NDArray[np.float32], settings: MineConfig, *, seed: int = 0
) -> NDArray[np.uint8]:
    """Return the serialised structure `settings.index` of normalised vectors (P, D)."""
    with one_thread():
        if settings.index == "hnsw":
            # efConstruction must exceed the 2 M links of the ground level, or their choice is poor
            index = hnsw(
                unit_PD.shape[1], settings.hnsw_m, max(settings.hnsw_ef, 2 * settings.hnsw_m)
            )
        else:
            index = ivf(unit_PD, lists(len(unit_PD), settings.ivf_lists), seed=seed)
        index.add(unit_PD)
    serialised: NDArray[np.uint8] = faiss.serialize_index(index)
    return serialised


def entry_bytes(dim: int, settings: MineConfig) -> int:
    """Return the memory of one vector in the structure `settings.index`, in bytes.

    It is a copy of the vector and:

    - HNSW: 2 M links of 4 bytes on the ground level. A vector is on level l or above with
      probability M^-l, so the levels above add M / (M - 1) links on average; a tenth of M is
      added as a margin. 12 bytes are the level and the offset of the links.
    - IVF: its number (8 bytes) and its share of a centre (4 D / PER_LIST bytes).
    """
    if settings.index == "hnsw":
        links = settings.hnsw_m * (2.1 + 1 / (settings.hnsw_m - 1))
        return 4 * dim + 12 + math.ceil(4 * links)
    return 4 * dim + 8 + math.ceil(4 * dim / PER_LIST)


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit FAISS to one thread: with more, an HNSW graph depends on which of them was first."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def hnsw(dim: int, links: int, build_ef: int) -> Any:
    """Return an empty HNSW graph with `links` a vector (M), chosen among `build_ef` candidates.

    `build_ef` is FAISS's efConstruction.
    """
    index: Any = faiss.IndexHNSWFlat(dim, links, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = build_ef
    return index


def lists(count: int, asked: int = 0) -> int:
    """Return the number of IVF lists (nlist) for `count` vectors: as asked, else 4 times the root.

    With nlist = c sqrt(n) and nprobe lists visited, a query is compared with nlist centres and
    nprobe n / nlist vectors; both grow with sqrt(n), and FAISS recommends c from 4 to 16. The
    number is cut so that a list has at least PER_LIST vectors.
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
    """Return empty IVF lists, their centres placed by k-means on at most `most` vectors a list.

    The seed draws the vectors; 256 a list is FAISS's own maximum (max_points_per_centroid), beyond
    which more hardly move the centres. `compressed` lists hold one byte for each number of a vector
    instead of four.
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
    train(index, unit_PD, seed=seed, most=most)
    return index


def train(lists: Any, unit_PD: NDArray[np.float32], *, seed: int = 0, most: int = 256) -> None:
    """Place the centres of FAISS's IVF lists, as `ivf` says."""
    lists.cp.seed, lists.cp.max_points_per_centroid = 1234 + seed, most
    lists.train(unit_PD)


def selector(mask: NDArray[np.bool_]) -> Any:
    """Return the vectors of a mask as a selector for FAISS's searches."""
    return _faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))


class Opened:
    """A structure that `build` made, read in place: processes that share the bytes share it."""

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
        """Return scores (B, depth), descending, and positions (B, depth), -1 for none."""
        if self._settings.index == "hnsw":
            # HNSW returns no more than the efSearch candidates that it keeps
            params = _faiss.SearchParametersHNSW(efSearch=max(self._settings.hnsw_ef, depth))
        else:
            params = _faiss.SearchParametersIVF(nprobe=self._settings.ivf_probes)
        found: tuple[NDArray[np.float32], NDArray[np.int64]] = self._index.search(
            query_BD, depth, params=params
        )
        return found
