"""The arrangement of a search's first candidates: boosts, near-duplicates, groups, diversity.

Shapes: N candidates, best first, D feature size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raycd.gallery import conditions
from raycd.index.effort import ROUNDING
from raycd.search.query import Found, Prepared

Floats = NDArray[np.float64]
Order = NDArray[np.int64]


def arrange(one: Prepared, found: Found) -> Found:
    """Return the candidates of a query in the order that its arrangement gives them.

    First the boost changes their values, then near-duplicates of what is kept, and all but the
    first of each group, are left out, then diversity chooses the next one each time.
    """
    wanted = one.query.arrangement
    if wanted is None:
        return found
    order: Order = np.flatnonzero(one.wanted(found))[: wanted.depth]
    positions = found.positions[order]
    value_N = _values(found, order)
    boosted_N = np.full(len(found.scores), np.nan)
    if wanted.boost is not None:
        texts = _attribute(found, positions, wanted.boost.attribute)
        value_N = value_N + wanted.boost.weight * percentiles([text or "" for text in texts])
        boosted_N[order] = value_N
    kept: Order = np.argsort(-value_N, kind="stable")
    at, group_by, alike = positions[kept], wanted.group_by, wanted.alike
    groups = None if group_by is None else _attribute(found, at, group_by)
    unit_ND = None if alike is None else found.images.vectors(at)
    kept = kept[spread(len(kept), groups, unit_ND, alike or 0.0)]
    if wanted.diversity:
        unit_ND, count = found.images.vectors(positions[kept]), one.query.offset + one.query.top_k
        kept = kept[diverse(value_N[kept], unit_ND, wanted.diversity, count)]
    order = order[kept]
    return Found(
        found.scores[order],
        found.positions[order],
        found.images,
        None if found.reranked is None else found.reranked[order],
        boosted_N[order] if wanted.boost is not None else None,
    )


def _attribute(found: Found, positions: Order, name: str) -> list[str | None]:
    return [found.images.attributes(at).get(name) for at in positions.tolist()]


def _values(found: Found, order: Order) -> Floats:
    """Return what orders the candidates so far: their cosines, or what re-ranking made of them.

    Those that were not re-ranked stay below those that were.
    """
    value_N = found.scores[order].astype(np.float64)
    if found.reranked is not None:
        reranked_N = found.reranked[order].astype(np.float64)
        below_N = np.isnan(reranked_N)
        if not below_N.all():
            worst = reranked_N[~below_N].min()
            value_N = np.where(below_N, np.minimum(value_N, worst), reranked_N)
    return value_N


def percentiles(texts: Sequence[str]) -> Floats:
    """Return the share (N,) of numbers below each one, ties counting half: 0 to 1.

    Of `n` numbers the least has 0 and the greatest 1. What is no number has 1/2, the middle.
    """
    number_N = np.array([conditions.number(text) for text in texts], np.float64)
    known_N = ~np.isnan(number_N)
    share_N = np.full(len(texts), 0.5)
    if known_N.sum() > 1:
        ordered = np.sort(number_N[known_N])
        below = np.searchsorted(ordered, number_N[known_N], "left")
        not_above = np.searchsorted(ordered, number_N[known_N], "right")
        share_N[known_N] = (below + not_above - 1) / 2 / (len(ordered) - 1)
    return share_N


def spread(
    count: int,
    groups: Sequence[str | None] | None = None,
    unit_ND: NDArray[np.float32] | None = None,
    alike: float = 1.0,
) -> Order:
    """Return which candidates no better one stands for, itself kept.

    One stands for those of its group, if `groups` (N,) are given, in which None is no group; and
    for those whose cosine with it is `alike` or more, if normalised features are.
    """
    cosine_NN = None if unit_ND is None else unit_ND @ unit_ND.T
    hidden_N, seen, kept = np.zeros(count, np.bool_), set[str](), []
    for at in range(count):
        group = None if groups is None else groups[at]
        if hidden_N[at] or group in seen:
            continue
        kept.append(at)
        if group is not None:
            seen.add(group)
        if cosine_NN is not None:
            hidden_N |= cosine_NN[at] >= alike - ROUNDING  # equal features have nearly 1
    return np.array(kept, np.int64)


def diverse(value_N: Floats, unit_ND: NDArray[np.float32], diversity: float, count: int) -> Order:
    """Return the first `count` candidates by maximal marginal relevance.

    The next one has the greatest lambda value - (1 - lambda) cosine with the nearest of those
    chosen before, with lambda = 1 - diversity (Carbonell & Goldstein, SIGIR 1998).
    """
    cosine_NN = (unit_ND @ unit_ND.T).astype(np.float64)
    chosen: list[int] = []
    left_N, nearest_N = (1 - diversity) * value_N, np.zeros(len(value_N))
    for _ in range(min(count, len(value_N))):
        best = int(np.argmax(left_N - diversity * nearest_N)) if chosen else int(np.argmax(value_N))
        nearest_N = np.maximum(nearest_N, cosine_NN[best]) if chosen else cosine_NN[best]
        left_N[best] = -np.inf
        chosen.append(best)
    return np.array(chosen, np.int64)
