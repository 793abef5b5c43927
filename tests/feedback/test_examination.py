"""The examination model: what expectation and maximisation make of clicks without a slice."""

from __future__ import annotations

import numpy as np
import pytest

from raycd.feedback import examination
from raycd.feedback.examination import GROUPS
from raycd.feedback.users import Habits
from tests.feedback.logs import session


def test_the_propensities_that_made_the_clicks_are_found_up_to_the_first() -> None:
    theta_K, gamma_G = 0.9 / np.arange(1, 9), np.linspace(0.05, 0.8, GROUPS)
    rng = np.random.default_rng(0)
    # Good results stand first, as a ranking puts them: their clicks alone would tell a wrong bias
    shown_KG = rng.poisson(2_000 * np.exp(np.outer(4 - np.arange(8), np.linspace(-1, 1, GROUPS))))
    clicked_KG = rng.binomial(shown_KG, np.outer(theta_K, gamma_G))
    naive_K = clicked_KG.sum(1) / shown_KG.sum(1)
    assert naive_K[4] / naive_K[0] < 0.7 * theta_K[4] / theta_K[0]
    found_K = examination.propensities(shown_KG, clicked_KG)
    assert found_K == pytest.approx(theta_K / theta_K[0], rel=0.06)


def test_a_first_position_that_is_hardly_clicked_makes_no_other_one_count_more() -> None:
    """Users look at position k with 1 / k; the first result, the reference itself, is not right.

    It stands nowhere else, so nothing tells whether it was not looked at.
    """
    rng, looked_K = np.random.default_rng(0), Habits().looked_at(10)
    ids, found = [f"i{k}" for k in range(10)], []
    for n in range(4_000):
        worth_K = np.r_[0.0 if n else 1.0, np.sort(rng.random(9))[::-1]]  # one slip of the finger
        clicked_K = rng.random(10) < looked_K * worth_K
        scores = (2.0, *worth_K[1:].tolist())
        found.append(session(ids, scores=scores, click=np.array(ids)[clicked_K]))
    values_K = examination.propensities(*examination.shown(found))
    assert values_K.max() == values_K[0] == 1
    assert values_K[1:] / values_K[1] == pytest.approx(looked_K[1:] / looked_K[1], rel=0.2)


def test_results_are_grouped_by_their_scores_and_counted_by_their_positions() -> None:
    found = [
        session("ab", scores=(float(n), float(n) - 0.5), first=10 * (n % 2), click="b")
        for n in range(2 * GROUPS)
    ]
    shown_KG, clicked_KG = examination.shown(found)
    assert shown_KG.shape == (12, GROUPS)
    assert shown_KG.sum(0) == pytest.approx(np.full(GROUPS, 4), abs=1)
    assert shown_KG.sum(1).nonzero()[0].tolist() == [0, 1, 10, 11]
    assert clicked_KG.sum(1).tolist() == [0, GROUPS, *([0] * 9), GROUPS]


def test_an_empty_log_has_no_propensities() -> None:
    assert len(examination.propensities(*examination.shown([]))) == 0
