"""IVF: images in lists around centres; a search visits the lists whose centres are nearest.

The lists hold one byte a number instead of four, so a search reads a quarter of the memory. The
first of what it finds is compared again by the features themselves, which are stored beside the
lists: as they are here, in half of the bytes and a mapped file where lists are `sq8` or `rabitq`.

Shapes: L lists, G images, N of them in a block, D feature size, B queries.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from raycd.config import IndexConfig
from raycd.index import approximate
from raycd.index.flat import Flat
from raycd.index.half import Half
from raycd.index.structure import NEARLY_ALL, Found, Mask

# FAISS's k_factor: 4 k images are compared again by their features. One byte a number shifts the
# cosines a little; what that loses beyond the first 4 k is part of the recall that is measured.
AGAIN = 4
# A mask may leave out a query's neighbourhood, and what is far away is spread over more lists
FAR = 4
FEW = 10_000  # images of a mask that are compared without lists

_faiss: Any = faiss  # its types lack what is used here


class Ivf:
    """FAISS's IndexRefineFlat over IndexIVFScalarQuantizer."""

    def __init__(self, index: Any) -> None:
        self.index = index
        self.effort = 1
        self._lists = self._inverted(_faiss.downcast_index(index.base_index))
        self._whole = self._stored(_faiss.downcast_index(index.refine_index))
        self._list_G = np.empty(index.ntotal, np.int32)  # the list that each image is in
        for number in range(self.lists):
            length = self._lists.invlists.list_size(number)
            if length:
                self._list_G[_faiss.rev_swig_ptr(self._lists.invlists.get_ids(number), length)] = (
                    number
                )

    @staticmethod
    def _inverted(base: Any) -> Any:
        """Return the lists of FAISS's index that finds the first."""
        return base

    @staticmethod
    def _stored(features: Any) -> Flat | Half:
        """Return FAISS's index that compares them again, as a structure."""
        return Flat(features)

    @classmethod
    def trained(cls, sample_ND: NDArray[np.float32], lists: int, settings: IndexConfig) -> Self:
        """Return empty lists whose centres the sample places."""
        return cls._empty(
            approximate.ivf(sample_ND, lists, most=settings.ivf_train, compressed=True)
        )

    def like(self) -> Self:
        """Return empty lists with the same centres."""
        own = self._lists
        centres = faiss.clone_index(own.quantizer)
        index: Any = faiss.IndexIVFScalarQuantizer(
            centres, own.d, own.nlist, own.sq.qtype, own.metric_type
        )
        index.sq, index.by_residual, index.is_trained = own.sq, own.by_residual, True
        other = self._empty(index)
        other.effort = self.effort
        return other

    @classmethod
    def _empty(cls, lists: Any) -> Self:
        return cls(_faiss.IndexRefine(lists, faiss.IndexFlatIP(lists.d)))

    def filled(self, blocks: Iterable[NDArray[np.float32]], size: int) -> Self:
        """Return a copy of empty lists with the images in the blocks (N, D), `size` in all."""
        return self.grown(blocks)

    def grown(self, blocks: Iterable[NDArray[np.float32]]) -> Self:
        """Return a copy that also has the images in the blocks (N, D), at the next positions."""
        index = faiss.clone_index(self.index)
        for unit_ND in blocks:
            index.add(unit_ND)
        other = type(self)(index)
        other.effort = self.effort
        return other

    @property
    def lists(self) -> int:
        """Return L, the number of lists."""
        return int(self._lists.nlist)

    def search(self, query_BD: NDArray[np.float32], k: int, allowed_G: Mask | None = None) -> Found:
        """Search as `Structure.search` describes.

        With a mask, lists are visited until as many images of it are compared as without a mask.
        Where the mask leaves out more than a tenth of all, only lists that hold any of it are
        visited, until FAR times as many are compared.
        """
        visited, parts = self.effort, dict[str, Any]()
        if allowed_G is not None:
            count, size = int(np.count_nonzero(allowed_G)), len(allowed_G)
            if count <= FEW:
                return self.exact(query_BD, k, allowed_G)
            parts["sel"] = approximate.selector(allowed_G)
            if count >= NEARLY_ALL * size:
                visited = min(self.lists, round(self.effort * size / count))
            else:
                inside_L = np.bincount(self._list_G[allowed_G], minlength=self.lists)
                holding = int(np.count_nonzero(inside_L))
                # A search visits nprobe lists of G / L images each; a list that holds any of the
                # mask holds count / holding of it
                wanted = FAR * self.effort * size / self.lists
                # Where they lie in few lists, one may hold more than is wanted
                visited = max(1, min(holding, round(wanted * holding / count)))
                parts["quantizer_params"] = _faiss.SearchParameters(
                    sel=approximate.selector(inside_L > 0)
                )
        # FAISS gives each thread whole queries (0), or some lists of every query (1).
        self._lists.parallel_mode = int(len(query_BD) < faiss.omp_get_max_threads())
        again = _faiss.IndexRefineSearchParameters(
            k_factor=self._again(k), base_index_params=self._visiting(visited, parts)
        )
        found: Found = self.index.search(query_BD, k, params=again)
        return found

    def _visiting(self, lists: int, parts: Mapping[str, Any]) -> Any:
        """Return FAISS's parameters of a search that visits so many lists.

        `parts` are objects in them, given to the constructor, which keeps them: what is set as an
        attribute, FAISS below 1.14 frees before the search.
        """
        return _faiss.SearchParametersIVF(nprobe=lists, **parts)

    def _again(self, k: int) -> float:
        """Return how many times k images are compared again."""
        return AGAIN

    def exact(self, query_BD: NDArray[np.float32], k: int, allowed_G: Mask | None = None) -> Found:
        """Search as `Structure.exact` describes."""
        return self._whole.exact(query_BD, k, allowed_G)

    def vectors(self, positions_N: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return features as `Structure.vectors` describes."""
        return self._whole.vectors(positions_N)

    def ranks(
        self, query_BD: NDArray[np.float32], positions_BK: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the nprobe (B, K) with which a query first visits the list of each image."""
        _, order_BL = self._lists.quantizer.search(query_BD, self.lists)
        rank_BL = np.empty_like(order_BL)
        np.put_along_axis(rank_BL, order_BL, np.arange(1, self.lists + 1)[None], axis=1)
        ranks: NDArray[np.int64] = np.take_along_axis(rank_BL, self._list_G[positions_BK], axis=1)
        return ranks
