"""Images that came after an index was built. It does not change, and neither does one of these once
it is made.

Where the index has lists, most of them are in lists of their own, around the same centres, so that
a search need not compare all of them; the last ones wait until there are enough to be put into
lists.

Shapes: A images, N of them in lists, B queries, D feature size.
"""

from __future__ import annotations

from typing import Self

import faiss
import numpy as np
from numpy.typing import NDArray

from raycd.index import Index
from raycd.index.ivf import Ivf
from raycd.index.structure import Found, Mask, best, found_in

WAITING, SHARE = 2048, 1 / 16  # images that wait for lists at most, or this share of those in lists


class Recent:
    """What came after `index`, normalised features (A, D) in the order in which they came."""

    def __init__(
        self, index: Index, unit_AD: NDArray[np.float32], lists: Ivf | None = None
    ) -> None:
        self.unit_AD = unit_AD
        self._index, self._lists = index, lists

    @classmethod
    def none(cls, index: Index) -> Self:
        """Nothing came yet."""
        return cls(index, np.empty((0, index.dim), np.float32))

    def __len__(self) -> int:
        return len(self.unit_AD)

    @property
    def listed(self) -> int:
        """N."""
        return int(self._lists.index.ntotal) if self._lists else 0

    @property
    def waiting(self) -> int:
        """Images that a search compares one by one."""
        return len(self) - self.listed

    @property
    def crowded(self) -> bool:
        """Whether so many wait for lists that it pays to put them there."""
        return self._index.kind == "ivf" and self.waiting > max(WAITING, int(SHARE * self.listed))

    def grown(self, unit_AD: NDArray[np.float32]) -> Self:
        """With more images, which wait for lists: `unit_AD` begins with those of this one."""
        return type(self)(self._index, unit_AD, self._lists)

    def put_into_lists(self) -> Self:
        """The same images, none of which waits. The more there are, the longer it takes; any thread
        may do it.
        """
        lists = self._lists or self._index.empty_lists()
        if lists:
            faiss.omp_set_num_threads(self._index.threads or faiss.omp_get_max_threads())
            lists = lists.grown([self.unit_AD[self.listed :]])
        return type(self)(self._index, self.unit_AD, lists)

    def with_lists_of(self, earlier: Self) -> Self:
        """With the lists of an earlier state; itself, if that is another index's."""
        return (
            type(self)(self._index, self.unit_AD, earlier._lists)
            if earlier._index is self._index
            else self
        )

    def search(
        self, query_BD: NDArray[np.float32], k: int, allowed_A: Mask, *, exact: bool = False
    ) -> Found:
        """Cosines (B, k) and positions (B, k) among these, as `Index.search` gives them."""
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
        """The best of those from `start` on, all of which are compared."""
        scores_BN = query_BD @ self.unit_AD[start:].T
        scores_BN[:, ~allowed_A[start:]] = -np.inf
        first = np.argpartition(-scores_BN, k - 1, axis=1)[:, :k]
        scores = np.take_along_axis(scores_BN, first, axis=1)
        return best([(scores, np.where(np.isneginf(scores), -1, first + start))], k)
