"""IVF: images in lists around centres; a search visits the lists whose centres are nearest to the query.

Shapes: L lists, G images, N of them in a block, D feature size, B queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from raycd import approximate
from raycd.config import IndexConfig
from raycd.index.structure import Found, Mask

_faiss: Any = faiss  # its types lack what is used here

Take = Callable[[NDArray[np.int64]], NDArray[np.float32]]


class Ivf:
    """FAISS's IndexIVFFlat."""

    def __init__(self, index: Any) -> None:
        self.index = index
        self.effort: int = index.nprobe
        index.make_direct_map()
        self._place_G = _faiss.vector_to_array(index.direct_map.array)
        self.list_G: NDArray[np.int32] = (self._place_G >> 32).astype(np.int32)  # FAISS: list << 32 | place in it
        """The list that each image is in."""

    @classmethod
    def build(
        cls, blocks: Iterable[NDArray[np.float32]], take: Take, size: int, settings: IndexConfig, *, seed: int = 0
    ) -> Self:
        """The lists of `size` images, given in blocks (N, D) and by `take` as those at some positions."""
        count = approximate.lists(size, settings.ivf_lists)
        rng = np.random.default_rng([seed, 9])
        sample = np.sort(rng.permutation(size)[: count * settings.ivf_train])
        index = approximate.ivf(take(sample), count, seed=seed, most=settings.ivf_train)
        nearest = np.concatenate([index.quantizer.assign(unit_ND, 1)[:, 0] for unit_ND in blocks])
        order, bounds = np.argsort(nearest, kind="stable"), np.cumsum(np.bincount(nearest, minlength=count))
        for number, members in enumerate(np.split(order, bounds[:-1])):
            if len(members):  # a whole list at once, which takes the memory that it needs and no more
                codes = np.ascontiguousarray(take(members))
                index.invlists.add_entries(
                    number, len(members), _faiss.swig_ptr(members), _faiss.swig_ptr(codes.view(np.uint8))
                )
        index.ntotal = size
        return cls(index)

    def search(self, query_BD: NDArray[np.float32], k: int, allowed_G: Mask | None = None) -> Found:
        """See `Structure.search`."""
        return self._visited(query_BD, k, self.effort, allowed_G)

    def exact(self, query_BD: NDArray[np.float32], k: int, allowed_G: Mask | None = None) -> Found:
        """See `Structure.exact`."""
        return self._visited(query_BD, k, self.index.nlist, allowed_G)

    def vectors(self, positions_N: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `Structure.vectors`."""
        found: NDArray[np.float32] = self.index.reconstruct_batch(positions_N)
        return found

    def ranks(self, query_BD: NDArray[np.float32], positions_BK: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many lists a query must visit until it comes to each of these images, (B, K)."""
        _, order_BL = self.index.quantizer.search(query_BD, self.index.nlist)
        rank_BL = np.empty_like(order_BL)
        np.put_along_axis(rank_BL, order_BL, np.arange(1, self.index.nlist + 1)[None], axis=1)
        ranks: NDArray[np.int64] = np.take_along_axis(rank_BL, self.list_G[positions_BK], axis=1)
        return ranks

    def _visited(self, query_BD: NDArray[np.float32], k: int, lists: int, allowed_G: Mask | None) -> Found:
        """Search so many lists; with a mask, as many of those that hold any of it as have as many images of it."""
        params = _faiss.SearchParametersIVF(nprobe=lists)
        if allowed_G is not None:
            inside_L = np.bincount(self.list_G[allowed_G], minlength=self.index.nlist)
            holding = int(np.count_nonzero(inside_L))
            wanted = lists * self.index.ntotal / self.index.nlist
            params.nprobe = max(1, min(holding, round(wanted * holding / max(1, inside_L.sum()))))
            params.sel = approximate.selector(allowed_G)
            params.quantizer_params = _faiss.SearchParameters(sel=approximate.selector(inside_L > 0))
        # FAISS gives each thread whole queries (0), or some lists of every query (1).
        self.index.parallel_mode = int(len(query_BD) < faiss.omp_get_max_threads())
        found: Found = self.index.search(query_BD, k, params=params)
        return found
