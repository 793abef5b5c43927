"""The position-based examination model, fitted by expectation and maximisation.

A result at position k of group g is clicked with the probability theta_k * gamma_g: it is examined,
and it is right. With one gamma for each pair of query and result nothing would tell the two apart,
for a pair is seldom seen at two positions; so results of like scores are one group, which is the
regression of Wang et al. (Position Bias Estimation for Unbiased Learning to Rank in Personal
Search, WSDM 2018) with a step function of the score. Still nothing tells them apart where a group
stands at one position alone, such as the reference itself at the first, which nobody clicks: so a
few clicks and skips are added to each position and group, and propensities fall (`falling`).

Shapes: K positions, G groups, M results shown.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from raycd.feedback.falling import falling
from raycd.feedback.records import LoggedSession

GROUPS = 20
_STEPS = 2_000
_SETTLED = 1e-7
_PRIOR = 1.0  # looks, and as many that were none, at each position; right results likewise


def shown(found: Iterable[LoggedSession]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return how often positions showed groups, and were clicked there: two arrays (K, G).

    Groups are equally frequent ranges of the relative score.
    """
    rows = [
        (session.search.first + position, score, image_id in liked)
        for session in found
        for liked in [session.liked]
        for position, (image_id, score) in enumerate(
            zip(session.search.results, session.search.scores, strict=True)
        )
    ]
    row_M3 = np.array(rows, np.float64).reshape(-1, 3)
    position_M, clicked_M = row_M3[:, 0].astype(np.int64), row_M3[:, 2].astype(np.int64)
    shares = np.arange(1, GROUPS) / GROUPS
    edges = np.quantile(row_M3[:, 1], shares) if rows else np.zeros(GROUPS - 1)
    group_M = np.searchsorted(edges, row_M3[:, 1], side="right")
    shown_KG = np.zeros((position_M.max(initial=-1) + 1, GROUPS), np.int64)
    clicked_KG = np.zeros_like(shown_KG)
    np.add.at(shown_KG, (position_M, group_M), 1)
    np.add.at(clicked_KG, (position_M, group_M), clicked_M)
    return shown_KG, clicked_KG


def propensities(shown_KG: NDArray[np.int64], clicked_KG: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the propensity theta of each position (K,), that of the first being 1.

    They are the most probable ones under Beta priors of 1 + _PRIOR, made to fall.
    """
    theta_K = np.full(len(shown_KG), 0.5)
    gamma_G = np.full(shown_KG.shape[1], 0.5)
    seen_K, of_group_G = (shown_KG.sum(axis) + 2 * _PRIOR for axis in (1, 0))
    skipped_KG = shown_KG - clicked_KG
    for _ in range(_STEPS):
        not_clicked_KG = 1 - theta_K[:, None] * gamma_G
        # Of what was not clicked: examined and not right, right and not examined
        examined_KG = theta_K[:, None] * (1 - gamma_G) / not_clicked_KG
        right_KG = (1 - theta_K[:, None]) * gamma_G / not_clicked_KG
        before_K = theta_K
        theta_K = ((clicked_KG + skipped_KG * examined_KG).sum(1) + _PRIOR) / seen_K
        gamma_G = ((clicked_KG + skipped_KG * right_KG).sum(0) + _PRIOR) / of_group_G
        if np.abs(theta_K - before_K).max(initial=0.0) < _SETTLED:
            break
    return falling(theta_K, clicked_KG.sum(1) + _PRIOR) if len(theta_K) else theta_K
