"""The interface of every kind of index. Features and queries are L2-normalised.

So their inner products, the scores, are cosines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

# A mask of at least this share of the images leaves out only a few, scattered ones: deleted images
NEARLY_ALL = 0.9

FIRST = 10  # results whose recall is measured
TIES = 1000  # how far behind the k-th result images that are equal to it are looked for

Mask = NDArray[np.bool_]
Found = tuple[NDArray[np.float32], NDArray[np.int64]]


class Structure(Protocol):
    """G images of D features in one of FAISS's indexes. It does not change once it is built."""

    index: Any
    """The FAISS index."""
    effort: int
    """Search effort: nprobe (IVF), efSearch (HNSW), 0 (flat, nothing to choose)."""

    def search(self, query_BD: NDArray[np.float32], k: int, allowed_G: Mask | None = None) -> Found:
        """Return cosines (B, k) and positions (B, k) of images of the mask, best first.

        The position is -1 where no more are found.
        """

    def exact(self, query_BD: NDArray[np.float32], k: int, allowed_G: Mask | None = None) -> Found:
        """Return the same after a comparison with every image of the mask.

        By what is stored: half, sq8 and rabitq store numbers of float16.
        """

    def vectors(self, positions_N: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return normalised features (N, D)."""


def found_in(
    structure: Structure,
    query_BD: NDArray[np.float32],
    k: int,
    *,
    exact: bool = False,
    allowed: Mask | None = None,
) -> Found:
    """Return cosines (B, k) and positions (B, k), best first, then by position.

    A query that found fewer images than there are is repeated exactly. Where fewer than k images
    are allowed, the last positions are -1 and their scores -inf.
    """
    search = structure.exact if exact else structure.search

    def first(rows_b: NDArray[np.int64], count: int) -> Found:
        some_bD = query_BD[rows_b]
        scores, positions = search(some_bD, count, allowed)
        if not exact and (short := _short(positions, allowed)).any():
            scores[short], positions[short] = structure.exact(some_bD[short], count, allowed)
        scores[positions < 0] = -np.inf
        return scores, positions

    return in_order(first, len(query_BD), k, int(structure.index.ntotal))


def in_order(
    search: Callable[[NDArray[np.int64], int], Found], queries: int, k: int, size: int
) -> Found:
    """Return the first k (B, k) of `size` images by score, then by position.

    `search(rows, count)` gives the first `count` of some queries, of equal images any. So one more
    is asked for, and up to TIES more for queries where that one is equal to the last: copies of an
    image are on one page or the next, and on no two.
    """
    rows_b, count = np.arange(queries), min(k + 1, size)
    found = best([search(rows_b, count)], count)
    scores, positions = found[0][:, :k], found[1][:, :k]
    while count > k and len(rows_b := rows_b[_is_cut(found[0], k)]) and count < min(size, k + TIES):
        count = min(max(8 * count, k + 64), k + TIES, size)
        found = best([search(rows_b, count)], count)
        scores[rows_b], positions[rows_b] = found[0][:, :k], found[1][:, :k]
    return scores, positions


def _is_cut(scores_bN: NDArray[np.float32], k: int) -> Mask:
    """Return the queries (b,) of which images equal to the k-th go on to the last that is known."""
    last_b = scores_bN[:, -1]
    cut: Mask = np.isfinite(last_b) & (last_b == scores_bN[:, k - 1])
    return cut


def best(found: Sequence[Found], k: int) -> Found:
    """Return the first k of several results, best first, then by position."""
    scores, positions = (np.hstack(halves) for halves in zip(*found, strict=True))
    order = np.lexsort((positions, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(positions, order, axis=1)


def _short(positions_BK: NDArray[np.int64], allowed: Mask | None) -> Mask:
    """Return the queries (B,) that found fewer images than there are for them."""
    there = (
        positions_BK.shape[1] if allowed is None else min(positions_BK.shape[1], int(allowed.sum()))
    )
    short: Mask = (positions_BK >= 0).sum(axis=1) < there
    return short
