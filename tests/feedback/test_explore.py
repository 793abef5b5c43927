"""The randomised slice: what is drawn, and the propensities that its clicks tell."""

from __future__ import annotations

from collections import Counter
from random import Random

import numpy as np
import pytest

from raycd.feedback import explore
from raycd.feedback.explore import POSITIONS
from tests.feedback.logs import session


def test_the_slice_has_its_share_and_every_pair_and_half_of_it_is_swapped() -> None:
    random = Random(0)
    drawn = [explore.draw(random, 30, 0.2) for _ in range(100_000)]
    found = [one for one in drawn if one is not None]
    assert len(found) / len(drawn) == pytest.approx(0.2, abs=0.01)
    assert sum(swapped for _, swapped in found) / len(found) == pytest.approx(0.5, abs=0.03)
    pairs = Counter(pair for pair, _ in found)
    assert set(pairs) == {(i, j) for j in range(POSITIONS) for i in range(j)}
    assert max(pairs.values()) < 1.6 * min(pairs.values())


def test_nothing_is_drawn_of_one_result_nor_without_a_slice() -> None:
    random = Random(0)
    assert all(explore.draw(random, shown, 1.0) is None for shown in (0, 1))
    assert all(explore.draw(random, 10, 0.0) is None for _ in range(100))
    assert explore.draw(random, 2, 1.0) is not None


def test_only_clicks_at_the_drawn_positions_of_the_first_page_count() -> None:
    found = [
        session("abcd", explored=(1, 3), click="d"),
        session("abcd", explored=(1, 3), click="bd"),
        session("abcd", explored=(1, 3), click="a"),
        session("abcd", click="b"),
        session("abcd", explored=(1, 3), first=4, click="b"),
    ]
    counts = explore.clicks(found)
    assert (counts[1, 3], counts[3, 1], counts.sum()) == (1, 2, 3)


def test_the_propensities_of_a_simulated_slice_are_found_whatever_the_results_are_worth() -> None:
    rng = np.random.default_rng(0)
    true_K = 1 / np.arange(1, POSITIONS + 1)
    random, clicks_KK = Random(0), np.zeros((POSITIONS, POSITIONS), np.int64)
    for _ in range(60_000):
        worth_K = np.sort(rng.random(POSITIONS))[::-1]  # the better ones stand first
        drawn = explore.draw(random, POSITIONS, 1.0)
        assert drawn is not None
        (i, j), swapped = drawn
        if swapped:
            worth_K[[i, j]] = worth_K[[j, i]]
        clicked_K = rng.random(POSITIONS) < true_K * worth_K
        clicks_KK[i, j] += clicked_K[i]
        clicks_KK[j, i] += clicked_K[j]
    assert explore.propensities(clicks_KK) == pytest.approx(true_K, rel=0.1)


def test_few_clicks_never_say_that_a_later_position_is_looked_at_more() -> None:
    few_KK = np.zeros((POSITIONS, POSITIONS), np.int64)
    few_KK[0, 1], few_KK[1, 0], few_KK[3, 0], few_KK[0, 3] = 4, 2, 3, 1
    found_K = explore.propensities(few_KK)
    assert found_K[0] == 1
    assert (np.diff(found_K) <= 1e-12).all()


def test_without_clicks_all_positions_are_alike() -> None:
    none_KK = np.zeros((POSITIONS, POSITIONS), np.int64)
    assert explore.propensities(none_KK) == pytest.approx(np.ones(POSITIONS))
