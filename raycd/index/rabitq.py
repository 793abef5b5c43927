"""RaBitQ: IVF whose lists hold a bit a number.

An image's difference from its centre is turned at random, as all are, and of each number the sign
is kept, with what makes the estimate of a cosine unbiased (Gao and Long, RaBitQ, SIGMOD 2024). The
estimates decide only which candidates are compared again by numbers of float16 in a mapped file:
how many is measured (`effort.choose`).

Of 30,000 of the benchmark's features of 640, without the turn ten times as many candidates are
needed for the same recall, with product quantisation of as many bytes four times as many, and with
two or four bits a number no fewer.

Shapes: L lists, G images, D feature size, B queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from raycd.config import IndexConfig
from raycd.index import approximate, blocks
from raycd.index.ivf import AGAIN
from raycd.index.sq8 import Sq8
from raycd.index.structure import FIRST

MOST = 128  # times FIRST images that are compared again
# Bits of a number of the query; FAISS's own 4 save little here and lose more
QUERY_BITS = 8
_SEED = 17  # seed of the rotation

_faiss: Any = faiss  # its types lack what is used here


class Rabitq(Sq8):
    """FAISS's IndexRefine of float16 over a rotation and IndexIVFRaBitQ.

    The same features, seed and threads give the same structure; with other threads the rotation
    differs in its last bits.
    """

    @staticmethod
    def _inverted(base: Any) -> Any:
        return _faiss.downcast_index(base.index)

    @property
    def again(self) -> int:
        """Return how many times FIRST images are compared again at least."""
        return int(self.index.k_factor)

    @again.setter
    def again(self, factor: int) -> None:
        self.index.k_factor = factor  # FAISS writes it into the file

    @classmethod
    def trained(cls, sample_ND: NDArray[np.float32], lists: int, settings: IndexConfig) -> Self:
        """Return empty lists whose centres the sample places; it is turned where it is."""
        dim = sample_ND.shape[1]
        turn = _faiss.RandomRotationMatrix(dim, dim)
        turn.init(_SEED)
        index = _faiss.IndexIVFRaBitQ(
            faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT
        )
        for start in range(0, len(sample_ND), blocks.SIZE):
            some = slice(start, start + blocks.SIZE)
            sample_ND[some] = turn.apply(sample_ND[some])
        approximate.train(index, sample_ND, most=settings.ivf_train)
        return cls._empty(_faiss.IndexPreTransform(turn, index))

    def like(self) -> Self:
        """Return empty lists with the same centres."""
        own = self._lists
        index = _faiss.IndexIVFRaBitQ(
            faiss.clone_index(own.quantizer), own.d, own.nlist, own.metric_type
        )
        index.is_trained = True
        turn = _faiss.RandomRotationMatrix(own.d, own.d)
        faiss.copy_array_to_vector(faiss.vector_to_array(self._turn.A), turn.A)
        turn.is_trained = True
        other = self._empty(_faiss.IndexPreTransform(turn, index))
        other.effort, other.again = self.effort, self.again
        return other

    @property
    def _turn(self) -> Any:
        base = _faiss.downcast_index(self.index.base_index)
        return _faiss.downcast_VectorTransform(base.chain.at(0))

    def _visiting(self, lists: int, parts: Mapping[str, Any]) -> Any:
        params = _faiss.IVFRaBitQSearchParameters(nprobe=lists, qb=QUERY_BITS, **parts)
        return _faiss.SearchParametersPreTransform(index_params=params)

    def _again(self, k: int) -> float:
        return max(AGAIN, self.again * FIRST / k)

    def ranks(
        self, query_BD: NDArray[np.float32], positions_BK: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the nprobe (B, K) with which a query first visits the list of each image."""
        return super().ranks(self._turn.apply(query_BD), positions_BK)
