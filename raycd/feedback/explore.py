"""The randomised slice: two results are swapped by the toss of a coin, and clicks are compared.

In the searches whose positions i and j were drawn, the two results stood at each of them half of
the time. So the clicks at i are to the clicks at j as the propensities are, whatever the results
(Joachims, Swaminathan and Schnabel, WSDM 2017; over all pairs: Agarwal et al., WSDM 2019).

Shapes: K positions.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

import numpy as np
from numpy.typing import NDArray

from raycd.feedback.falling import falling
from raycd.feedback.records import LoggedSession

POSITIONS = 10  # first results that may be swapped
_STEPS = 200
_PRIOR = 0.5  # clicks at either of two neighbouring positions, so that none is without any


def draw(random: Random, shown: int, share: float) -> tuple[tuple[int, int], bool] | None:
    """Draw whether a search is of the slice, its two positions, and whether they are swapped.

    Args:
        shown: Number of results.
        share: Of the searches that are in the slice.
    """
    last = min(shown, POSITIONS)
    if last < 2 or random.random() >= share:
        return None
    first, second = sorted(random.sample(range(last), 2))
    return (first, second), random.random() < 0.5


def clicks(found: Iterable[LoggedSession]) -> NDArray[np.int64]:
    """Return clicks (K, K): [i, j] at i, of searches whose positions i and j were drawn."""
    counts_KK = np.zeros((POSITIONS, POSITIONS), np.int64)
    for session in found:
        if session.search.explored is None or session.search.first:
            continue
        liked = session.liked
        for own, other in (session.search.explored, session.search.explored[::-1]):
            counts_KK[own, other] += session.search.results[own] in liked
    return counts_KK


def propensities(clicks_KK: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the propensity of each position (K,), that of the first being 1.

    The greatest likelihood of clicks falling on i rather than j with p_i / (p_i + p_j), which is
    the model of Bradley and Terry, found by Hunter's MM algorithm (Annals of Statistics 2004), and
    made to fall (`falling`).
    """
    wins_KK = clicks_KK.astype(np.float64)
    near = np.arange(len(wins_KK) - 1)
    wins_KK[near, near + 1] += _PRIOR
    wins_KK[near + 1, near] += _PRIOR
    total_KK = wins_KK + wins_KK.T
    found_K = np.ones(len(wins_KK))
    for _ in range(_STEPS):
        found_K = wins_KK.sum(1) / (total_KK / (found_K[:, None] + found_K)).sum(1)
        found_K /= found_K[0]
    return falling(found_K, wins_KK.sum(1))
