"""Images that were added after an index was built.

Where the index has inverted lists, most of the added images are in lists of their own, around the
same centres, so that a search need not compare all of them. The last ones are unindexed until they
are many enough for a merge into the lists.

Shapes: A images, B queries, D feature size.
"""

from __future__ import annotations

from typing import Self

import faiss
import numpy as np
from numpy.typing import NDArray

from raycd.index import Index
from raycd.index.ivf import Ivf
from raycd.index.structure import Found, Mask, best, found_in, in_order

# A merge pays from this many unindexed images, or this share of those in lists.
MAX_UNINDEXED, MERGE_SHARE = 2048, 1 / 16


class Recent:
    """The images added after `index`, by normalised features (A, D) in their order; immutable."""

    def __init__(
        self, index: Index, unit_AD: NDArray[np.float32], lists: Ivf | None = None
    ) -> None:
        self.unit_AD = unit_AD
        self._index, self._lists = index, lists

    @classmethod
    def none(cls, index: Index) -> Self:
        """Return the state before the first addition."""
        return cls(index, np.empty((0, index.dim), np.float32))

    def __len__(self) -> int:
        return len(self.unit_AD)

    @property
    def listed(self) -> int:
        """The number of images in lists."""
        return int(self._lists.index.ntotal) if self._lists else 0

    @property
    def unindexed(self) -> int:
        """The number of images that a search compares one by one."""
        return len(self) - self.listed

    @property
    def needs_merge(self) -> bool:
        """Return whether so many images are unindexed that a merge pays."""
        return self._index.has_lists and self.unindexed > max(
            MAX_UNINDEXED, int(MERGE_SHARE * self.listed)
        )

    def grown(self, unit_AD: NDArray[np.float32]) -> Self:
        """Return a state with more, unindexed images; `unit_AD` begins with those of this one."""
        return type(self)(self._index, unit_AD, self._lists)

    def put_into_lists(self) -> Self:
        """Return a state of the same images with all of them in lists; any thread may do it."""
        lists = self._lists or self._index.empty_lists()
        if lists:
            faiss.omp_set_num_threads(self._index.threads or faiss.omp_get_max_threads())
            lists = lists.grown([self.unit_AD[self.listed :]])
        return type(self)(self._index, self.unit_AD, lists)

    def with_lists_of(self, earlier: Self) -> Self:
        """Return this state with the lists of an earlier one; itself, if that had another index."""
        if earlier._index is not self._index:
            return self
        return type(self)(self._index, self.unit_AD, earlier._lists)

    def search(
        self, query_BD: NDArray[np.float32], k: int, allowed_A: Mask, *, exact: bool = False
    ) -> Found:
        """Return cosines (B, k) and positions (B, k) among these images, as `Index.search`."""
        k = min(k, len(self))
        if self._lists is None or exact:
            return self._compared(query_BD, k, allowed_A, 0)
        count = self.listed
        found = [found_in(self._lists, query_BD, min(k, count), allowed=allowed_A[:count])]
        if count < len(self):
            found.append(self._compared(query_BD, min(k, len(self) - count), allowed_A, count))
        return best(found, k)

    def _compared(
        self, query_BD: NDArray[np.float32], k: int, allowed_A: Mask, start: int
    ) -> Found:
        """Return the best of the images from `start` on, by comparing all of them."""
        scores_BN = query_BD @ self.unit_AD[start:].T
        scores_BN[:, ~allowed_A[start:]] = -np.inf

        def first(rows_b: NDArray[np.int64], count: int) -> Found:
            scores_bN = scores_BN[rows_b]
            at_bC = np.argpartition(-scores_bN, count - 1, axis=1)[:, :count]
            scores = np.take_along_axis(scores_bN, at_bC, axis=1)
            return scores, np.where(np.isneginf(scores), -1, at_bC + start)

        return in_order(first, len(query_BD), k, scores_BN.shape[1])
