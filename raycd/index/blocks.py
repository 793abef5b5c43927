"""Features a block at a time: gigabytes are normalised, summed up and searched without a copy.

They come from whatever can be read in parts, and again: an array, also one that is mapped from a
file, or a view of a gallery.

Shapes: G gallery images, N of them in a block, D feature size, B queries.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from raycd.errors import WeightsError
from raycd.index.structure import Found

SIZE = 1 << 14  # images of a block


class FeatureRows(Protocol):
    """Features (G, D) of any length that can be read in parts, and again."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return G and D."""

    def __getitem__(self, rows: slice | NDArray[np.int64], /) -> NDArray[np.float32]:
        """Return the features (N, D) of some images."""


class Moments(NamedTuple):
    """Mean and covariance of a gallery's features, which make a z-score of a score of any query."""

    mean_D: NDArray[np.float32]
    """Mean of the normalised features."""
    covariance_DD: NDArray[np.float32]
    """Their covariance."""


def unit_blocks(
    features_GD: FeatureRows, lengths_G: NDArray[np.float32]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Yield the positions (N,) of each block's images, and the block (N, D), L2-normalised."""
    for start in range(0, len(lengths_G), SIZE):
        position_N = np.arange(start, min(start + SIZE, len(lengths_G)))
        yield position_N, unit(features_GD, lengths_G, slice(start, start + SIZE))


def unit(
    features_GD: FeatureRows, lengths_G: NDArray[np.float32], rows: slice | NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the L2-normalised features (N, D) of some images."""
    found_ND: NDArray[np.float32] = np.asarray(features_GD[rows], np.float32)
    # Rows by number are a copy already, and may be many
    own = not isinstance(rows, slice) and found_ND.flags.writeable
    return np.divide(found_ND, lengths_G[rows, None], out=found_ND if own else None)


def lengths(features_GD: FeatureRows) -> NDArray[np.float32]:
    """Return L2 norms (G,). Raises WeightsError where a feature is zero or not finite."""
    found = np.empty(features_GD.shape[0], np.float32)
    for start in range(0, len(found), SIZE):
        found[start : start + SIZE] = np.linalg.norm(
            np.asarray(features_GD[start : start + SIZE], np.float32), axis=1
        )
    broken = ~np.isfinite(found) | (found == 0)
    if broken.any():
        raise WeightsError(
            f"{int(broken.sum())} of {len(found)} gallery features are zero or not finite",
            got=f"the first at position {int(broken.argmax())}",
            do="check the encoder's weights; where embed.precision is bf16, try fp32",
        )
    return found


def moments(features_GD: FeatureRows, lengths_G: NDArray[np.float32]) -> Moments:
    """Return mean and covariance of the normalised features; both are 0 without features.

    There are two passes, because the features of one gallery are close together: subtracting the
    square of the mean from a mean of squares would leave only rounding errors.
    """
    count, dim = max(1, len(lengths_G)), features_GD.shape[1]
    sum_D, square_DD = np.zeros(dim), np.zeros((dim, dim))
    for _, unit_ND in unit_blocks(features_GD, lengths_G):
        sum_D += unit_ND.sum(axis=0, dtype=np.float64)
    mean_D = (sum_D / count).astype(np.float32)
    for _, unit_ND in unit_blocks(features_GD, lengths_G):
        from_mean_ND = unit_ND - mean_D
        square_DD += from_mean_ND.T @ from_mean_ND
    return Moments(mean_D, (square_DD / count).astype(np.float32))


def nearest(
    query_BD: NDArray[np.float32],
    parts: Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]],
    k: int,
) -> Found:
    """Return cosines (B, k) and positions (B, k) of the true nearest of queries, in no order.

    The position is -1, and the cosine -inf, where there are no more.

    Args:
        query_BD: Normalised, as the parts.
        parts: Positions (N,) and features (N, D) of some of the images after the other.
    """
    best_score = np.full((len(query_BD), k), -np.inf, np.float32)
    best_position = np.full((len(query_BD), k), -1, np.int64)
    for position_N, unit_ND in parts:
        score, row = faiss.knn(
            query_BD, unit_ND, min(k, len(unit_ND)), metric=faiss.METRIC_INNER_PRODUCT
        )
        score, position = (
            np.hstack([best_score, score]),
            np.hstack([best_position, position_N[row]]),
        )
        first = np.argpartition(-score, k - 1, axis=1)[:, :k]
        best_score, best_position = (
            np.take_along_axis(score, first, axis=1),
            np.take_along_axis(position, first, axis=1),
        )
    return best_score, best_position
