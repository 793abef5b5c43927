"""What every kind of index can do. Features and queries are L2-normalised, so that scores are cosines."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

NEARLY_ALL = 0.9  # share of the images from which on a mask only leaves out a few, scattered ones: deleted images

Mask = NDArray[np.bool_]
Found = tuple[NDArray[np.float32], NDArray[np.int64]]


class Structure(Protocol):
    """G images of D features in one of FAISS's indexes. It does not change once it is built."""

    index: Any
    """FAISS's."""
    effort: int
    """What a search spends: lists that it visits (IVF), candidates that it keeps (HNSW), nothing to choose (flat)."""

    def search(self, query_BD: NDArray[np.float32], k: int, allowed_G: Mask | None = None) -> Found:
        """Cosines (B, k) and positions (B, k) of images of the mask, best first; position -1 where no more is found."""

    def exact(self, query_BD: NDArray[np.float32], k: int, allowed_G: Mask | None = None) -> Found:
        """The same, compared with every image of the mask."""

    def vectors(self, positions_N: NDArray[np.int64]) -> NDArray[np.float32]:
        """Normalised features (N, D)."""
