"""The flat index: a query is compared with every image."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from raycd.index.structure import Found, Mask

_faiss: Any = faiss  # its types lack what is used here


class Flat:
    """FAISS's IndexFlatIP."""

    def __init__(self, index: Any) -> None:
        self.index = index
        self.effort = 0

    @classmethod
    def build(cls, blocks: Iterable[NDArray[np.float32]], dim: int) -> Self:
        """Build the index of all images in the blocks (N, D), in their order."""
        index = faiss.IndexFlatIP(dim)
        for unit_ND in blocks:
            index.add(unit_ND)
        return cls(index)

    def search(self, query_BD: NDArray[np.float32], k: int, allowed_G: Mask | None = None) -> Found:
        """Return the same as `exact`: every search is exact."""
        return self.exact(query_BD, k, allowed_G)

    def exact(self, query_BD: NDArray[np.float32], k: int, allowed_G: Mask | None = None) -> Found:
        """Search as `Structure.exact` describes."""
        params = None
        if allowed_G is not None:
            params = _faiss.SearchParameters(sel=_faiss.IDSelectorArray(np.flatnonzero(allowed_G)))
        found: Found = self.index.search(query_BD, k, params=params)
        return found

    def vectors(self, positions_N: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return features as `Structure.vectors` describes."""
        size, dim = self.index.ntotal, self.index.d
        chosen: NDArray[np.float32] = _faiss.rev_swig_ptr(self.index.get_xb(), size * dim).reshape(
            size, dim
        )
        return chosen[positions_N]
