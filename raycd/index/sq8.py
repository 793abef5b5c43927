"""IVF that keeps only its lists in memory: one byte a number.

The first of what a search finds is compared again by numbers of float16 in a mapped file (`half`),
of which a search reads a few pages.

Shapes: G images, N of them in a block, D feature size.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from raycd.index import half
from raycd.index.half import Half
from raycd.index.ivf import Ivf

_faiss: Any = faiss  # its types lack what is used here


class Sq8(Ivf):
    """FAISS's IndexRefine of float16 over IndexIVFScalarQuantizer."""

    @staticmethod
    def _stored(features: Any) -> Half:
        return Half(features)

    @classmethod
    def _empty(cls, lists: Any) -> Self:
        return cls(_faiss.IndexRefine(lists, half.empty(lists.d)))

    def filled(self, blocks: Iterable[NDArray[np.float32]], size: int) -> Self:
        """Return a copy of empty lists with the images in the blocks (N, D), `size` in all.

        What they are compared with again is in a file of the system's.
        """
        lists = faiss.clone_index(self.index.base_index)
        rows_GD = half.room((size, lists.d), np.float16)
        for unit_ND in half.copied(blocks, rows_GD):
            lists.add(unit_ND)
        whole = Half.over(rows_GD)
        other = type(self)(_faiss.IndexRefine(lists, whole.index))
        other.effort, other._whole = self.effort, whole
        return other
