"""The results of encoded queries: the search of the gallery, and what is told of each image.

Shapes: B queries, D feature size, R results.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raycd.index.blocks import Moments
from raycd.search.query import Encoded, Found, Prepared, Result

# Up to this variance of a query's cosines with a gallery, much of it is the rounding of float32.
MIN_VARIANCE = 1e-7


def search(batch: Sequence[Prepared], query_BD: NDArray[np.float32]) -> dict[int, Found]:
    """Return scores and positions of each query, by its row, from the first result on."""
    found = {}
    for rows, depth in _alike(batch):
        first = batch[rows[0]]
        scores, positions, images = first.view.nearest(
            query_BD[rows], depth, exact=first.query.exact, allowed=first.query.allowed
        )
        for at, row in enumerate(rows):
            found[row] = Found(scores[at], positions[at], images)
    return found


def of(one: Prepared, feature: Encoded, found: Found) -> list[Result]:
    """Return the wanted results, each with its cosines with image and text alone."""
    query, images = one.query, found.images
    page = slice(query.offset, query.offset + query.top_k)
    chosen = np.flatnonzero(one.wanted(found))[page]
    scores, positions = found.scores[chosen], found.positions[chosen]
    vectors_RD = images.vectors(positions)
    relative = _relative(feature.query_BD, scores, one.view.moments)
    halves = [_cosines(vectors_RD, half) for half in (feature.image_BD, feature.text_BD)]
    decided = [_decisive(values, chosen) for values in (found.reranked, found.boosted)]
    return [
        Result(
            images.image_id(position),
            score,
            images.category(position),
            images.attributes(position),
            position,
            *rest,
        )
        for position, score, *rest in zip(
            positions.tolist(), scores.tolist(), relative, *halves, *decided, strict=True
        )
    ]


def _decisive(
    values: NDArray[np.floating[Any]] | None, chosen: NDArray[np.int64]
) -> list[float | None]:
    """Return what decided on the chosen ones; None where it was their score alone."""
    if values is None:
        return [None] * len(chosen)
    return [None if value != value else value for value in values[chosen].tolist()]


def _relative(
    query_D: NDArray[np.float32], scores: NDArray[np.float32], moments: Moments
) -> list[float]:
    """Return z-scores over the whole gallery; 0 where its cosines differ by rounding alone.

    Mean and variance of the cosines follow from those of the features: q.m and q.C.q.
    """
    variance = float(query_D @ moments.covariance_DD @ query_D)
    if variance <= MIN_VARIANCE:
        return [0.0] * len(scores)
    z_scores: list[float] = ((scores - query_D @ moments.mean_D) / variance**0.5).tolist()
    return z_scores


def _cosines(vectors_RD: NDArray[np.float32], half_D: NDArray[np.float32]) -> list[float | None]:
    """Return cosines with a half of the query; None for each where the query lacks it."""
    if np.isnan(half_D[0]):
        return [None] * len(vectors_RD)
    cosines: list[float | None] = (vectors_RD @ half_D).tolist()
    return cosines


def _alike(batch: Sequence[Prepared]) -> list[tuple[list[int], int]]:
    """Group queries that can be searched together, as rows and the depth that they need."""
    groups: dict[tuple[int, int | str, bool], list[int]] = {}
    for row, one in enumerate(batch):
        allowed = one.query.allowed
        of = allowed if isinstance(allowed, str) else id(allowed)  # a search engine's expression
        groups.setdefault((id(one.view), of, one.query.exact), []).append(row)
    return [(rows, max(batch[row].depth for row in rows)) for rows in groups.values()]
