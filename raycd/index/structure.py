"""What every kind of index can do. Features and queries are L2-normalised, so that scores are
cosines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

# Share of the images from which on a mask only leaves out a few, scattered ones: deleted images
NEARLY_ALL = 0.9

Mask = NDArray[np.bool_]
Found = tuple[NDArray[np.float32], NDArray[np.int64]]


class Structure(Protocol):
    """G images of D features in one of FAISS's indexes. It does not change once it is built."""

    index: Any
    """FAISS's."""
    effort: int
    """What a search spends: lists that it visits (IVF), candidates that it keeps (HNSW), nothing to
    choose (flat).
    """

    def search(self, query_BD: NDArray[np.float32], k: int, allowed_G: Mask | None = None) -> Found:
        """Cosines (B, k) and positions (B, k) of images of the mask, best first; position -1 where
        no more is found.
        """

    def exact(self, query_BD: NDArray[np.float32], k: int, allowed_G: Mask | None = None) -> Found:
        """The same, compared with every image of the mask."""

    def vectors(self, positions_N: NDArray[np.int64]) -> NDArray[np.float32]:
        """Normalised features (N, D)."""


def found_in(
    structure: Structure,
    query_BD: NDArray[np.float32],
    k: int,
    *,
    exact: bool = False,
    allowed: Mask | None = None,
) -> Found:
    """Cosines (B, k) and positions (B, k), best first, then by position; no structure misses images
    for lack of effort.

    Where fewer than k images are allowed, position -1 and score -inf stand at the end.
    """
    search = structure.exact if exact else structure.search
    scores, positions = search(query_BD, k, allowed)
    if not exact and (short := _short(positions, allowed)).any():
        scores[short], positions[short] = structure.exact(query_BD[short], k, allowed)
    scores[positions < 0] = -np.inf
    return best([(scores, positions)], k)


def best(found: Sequence[Found], k: int) -> Found:
    """The first k of what was found in several places, best first, then by position."""
    scores, positions = (np.hstack(halves) for halves in zip(*found, strict=True))
    order = np.lexsort((positions, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(positions, order, axis=1)


def _short(positions_BK: NDArray[np.int64], allowed: Mask | None) -> Mask:
    """Queries (B,) that found fewer images than there are for them."""
    there = (
        positions_BK.shape[1] if allowed is None else min(positions_BK.shape[1], int(allowed.sum()))
    )
    short: Mask = (positions_BK >= 0).sum(axis=1) < there
    return short
