"""HNSW: a graph of neighbours, in which a search walks towards the query."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from raycd.config import IndexConfig
from raycd.index import approximate
from raycd.index.flat import Flat
from raycd.index.structure import NEARLY_ALL, Found, Mask

_faiss: Any = faiss  # its types lack what is used here


class Hnsw:
    """FAISS's IndexHNSWFlat."""

    def __init__(self, index: Any) -> None:
        self.index = index
        self.effort: int = index.hnsw.efSearch
        self._flat = Flat(faiss.downcast_index(index.storage))

    @classmethod
    def build(cls, blocks: Iterable[NDArray[np.float32]], dim: int, settings: IndexConfig) -> Self:
        """Build the graph of all images in the blocks (N, D), in their order."""
        index = approximate.hnsw(dim, settings.hnsw_m, settings.hnsw_build_ef)
        with approximate.one_thread():
            for unit_ND in blocks:
                index.add(unit_ND)
        return cls(index)

    def search(self, query_BD: NDArray[np.float32], k: int, allowed_G: Mask | None = None) -> Found:
        """Search as `Structure.search` describes; exact where the mask leaves out over a tenth.

        The graph is walked towards the query, and little would be found where the mask leaves its
        neighbourhood out.
        """
        selector, kept = None, self.effort
        if allowed_G is not None:
            share = float(allowed_G.mean())
            if share < NEARLY_ALL:
                return self.exact(query_BD, k, allowed_G)
            # Masked images still take up candidates: keep as many more as the mask leaves out
            selector, kept = approximate.selector(allowed_G), round(kept / share)
        params = _faiss.SearchParametersHNSW(efSearch=max(kept, k), sel=selector)
        found: Found = self.index.search(query_BD, k, params=params)
        return found

    def exact(self, query_BD: NDArray[np.float32], k: int, allowed_G: Mask | None = None) -> Found:
        """Search as `Structure.exact` describes."""
        return self._flat.exact(query_BD, k, allowed_G)

    def vectors(self, positions_N: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return features as `Structure.vectors` describes."""
        return self._flat.vectors(positions_N)
