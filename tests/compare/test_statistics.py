"""The statistics of a comparison against closed forms, hand-made tables and simulated truths."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from raycd.compare import difference, holm, over_seeds, statistics, weights
from raycd.compare.statistics import Spread

ONE = ["dress"]
Floats = NDArray[np.float64]


def test_the_spread_over_five_seeds_is_students() -> None:
    # mean 0.03; deviations -0.02 -0.01 0 0.01 0.02, variance 0.001/4; t of 4 degrees: 2.776445
    found = over_seeds([0.01, 0.02, 0.03, 0.04, 0.05])
    margin = 2.776445 * (0.001 / 4) ** 0.5 / 5**0.5
    assert found.mean == pytest.approx(0.03)
    assert found.sd == pytest.approx((0.001 / 4) ** 0.5)
    assert (found.low, found.high) == pytest.approx((0.03 - margin, 0.03 + margin), rel=1e-6)


def test_the_spread_over_two_seeds_is_students() -> None:
    # deviation 0.02/sqrt(2), of the mean 0.01; t of 1 degree of freedom is 12.706205
    found = over_seeds([0.01, 0.03])
    assert (found.low, found.high) == pytest.approx((0.02 - 0.12706205, 0.02 + 0.12706205))


def test_one_seed_and_seeds_that_do_not_differ_have_no_interval() -> None:
    assert over_seeds([0.4]) == Spread(0.4, None, None, None)
    equal = over_seeds([0.1 + 0.2, 0.3])  # equal but for rounding
    assert (equal.sd, equal.low, equal.high) == (0.0, None, None)


def test_weights_make_the_unweighted_mean_over_categories() -> None:
    categories = ["dress", "shirt", "dress", "dress"]
    assert weights(categories).tolist() == pytest.approx([1 / 6, 1 / 2, 1 / 6, 1 / 6])
    hits = np.array([1.0, 0.0, 1.0, 0.0])
    assert hits @ weights(categories) == pytest.approx((2 / 3 + 0) / 2)


def test_a_difference_is_the_mean_over_categories_of_what_the_other_has_more() -> None:
    baseline = [[1, 0, 0, 0], [1, 1, 0, 0]]
    other = [[1, 1, 0, 1], [1, 1, 0, 1]]
    # dress (3 queries): +1 of 3, then 0; shirt (1 query): +1 twice
    found = difference(baseline, other, ["dress", "dress", "dress", "shirt"])
    assert found.mean == pytest.approx(((1 / 3 + 0) / 2 + 1) / 2)


def test_where_only_seeds_differ_the_interval_is_students() -> None:
    """One answer a seed: the bootstrap's error is s / sqrt(n), its degrees of freedom n - 1."""
    values = np.array([[0.01], [0.02], [0.03], [0.04], [0.05]])
    found = difference(np.zeros((5, 1)), values, ONE)
    exact = over_seeds(values[:, 0].tolist())
    assert found.mean == pytest.approx(exact.mean)
    assert found.low == pytest.approx(exact.low, abs=0.03 * 0.0196)
    # t = 0.03 / (0.0158 / sqrt(5)) = 4.2426, two-sided p of 4 degrees of freedom: 0.013236
    assert found.p == pytest.approx(0.013236, rel=0.1)


def test_where_seeds_agree_the_error_is_that_of_the_queries() -> None:
    """Two seeds that answer alike: the error is that of a mean of Q differences."""
    rng = np.random.default_rng(1)
    gain = rng.choice([-1.0, 0.0, 1.0], 400, p=[0.1, 0.6, 0.3])
    found = difference(np.zeros((2, 400)), np.tile(gain, (2, 1)), ONE * 400)
    error = gain.std() / math.sqrt(400)
    assert found.low is not None
    assert (found.mean - found.low) / error == pytest.approx(1.966, rel=0.03)  # t of 399 degrees


def test_the_error_of_both_is_the_closed_form_of_the_two_way_bootstrap() -> None:
    """Var = seeds' + queries' + noise's, each worked out from the whole array."""
    rng = np.random.default_rng(2)
    seeds, queries = 5, 300
    delta = 0.3 * rng.normal(size=(seeds, 1)) + rng.normal(size=(seeds, queries))
    drawn = seeds - 1
    # Draws of seeds and queries are independent: E[w w'] and E[v v'] of multinomial counts.
    of_seeds = np.full((seeds, seeds), (1 - 1 / drawn) / seeds**2) + np.eye(seeds) / seeds / drawn
    of_queries = (
        np.full((queries, queries), (1 - 1 / queries) / queries**2) + np.eye(queries) / queries**2
    )
    second = float(np.sum(of_seeds * (delta @ of_queries @ delta.T)))
    drawn_means = statistics._bootstrap(delta / queries, [np.arange(queries)], 0, 20_000)
    exact = second - delta.mean() ** 2
    assert float(drawn_means.var(ddof=1)) == pytest.approx(exact, rel=0.05)
    parts = statistics._Parts.of(delta / queries, [np.arange(queries)])
    assert exact == pytest.approx(parts.seeds + parts.queries + parts.noise, rel=0.01)


def test_the_parts_of_the_error_are_those_that_were_drawn() -> None:
    """Over many arrays their means are sigma_seed^2 / S, sigma_query^2 / Q, sigma^2 / (S Q)."""
    rng, found = np.random.default_rng(7), []
    for _ in range(400):
        delta = simulate(rng, 0.2, 0.5, 0.8)
        found.append(statistics._Parts.of(delta / 150, [np.arange(150)]))
    noise = 0.8**2 / 750
    assert np.mean([parts.noise for parts in found]) == pytest.approx(noise, rel=0.02)
    assert np.mean([p.seeds for p in found]) == pytest.approx(0.2**2 / 5 + noise, rel=0.1)
    assert np.mean([p.queries for p in found]) == pytest.approx(0.5**2 / 150 + noise, rel=0.02)


def simulate(rng: np.random.Generator, of_seeds: float, of_queries: float, noise: float) -> Floats:
    """Draw differences (5, 150) whose true mean is 0.1."""
    seed_S1 = of_seeds * rng.normal(size=(5, 1))
    query_1Q = of_queries * rng.normal(size=(1, 150))
    found: Floats = 0.1 + seed_S1 + query_1Q + noise * rng.normal(size=(5, 150))
    return found


@pytest.mark.parametrize(
    ("of_seeds", "of_queries", "noise", "widest"),
    [(0.1, 0.2, 0.2, 0.98), (0.005, 0.6, 0.3, 0.98), (0.05, 0.6, 0.6, 0.98), (0, 0, 0.7, 1.0)],
    ids=["seeds", "queries", "both", "only noise"],
)
def test_intervals_hold_the_truth_as_often_as_they_say(
    of_seeds: float, of_queries: float, noise: float, widest: float
) -> None:
    rng = np.random.default_rng(3)
    held, runs = 0, 300
    for run in range(runs):
        delta = simulate(rng, of_seeds, of_queries, noise)
        found = difference(np.zeros_like(delta), delta, ONE * 150, seed=run, resamples=120)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0.1 <= found.high
    assert 0.93 <= held / runs <= widest


def test_a_bootstrap_of_queries_alone_would_hold_it_too_seldom() -> None:
    """The seeds' part is needed: without it the same data give too narrow intervals."""
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(300):
        delta_Q = simulate(rng, 0.1, 0.2, 0.2).mean(axis=0)
        held += abs(delta_Q.mean() - 0.1) <= 1.976 * delta_Q.std(ddof=1) / math.sqrt(150)
    assert held / 300 < 0.75


def test_equals_are_called_different_in_a_twentieth_of_all_cases_at_most() -> None:
    rng = np.random.default_rng(4)
    called = 0
    for run in range(300):
        chance_Q = rng.beta(2, 2, size=300)  # how hard each query is
        one, other = (rng.random((5, 300)) < chance_Q for _ in range(2))
        found = difference(one, other, ONE * 300, seed=run, resamples=120)
        called += found.p is not None and found.p < 0.05
    assert called / 300 <= 0.05


def test_a_real_difference_is_found() -> None:
    rng = np.random.default_rng(5)
    chance_Q = rng.uniform(0.3, 0.9, size=2100)
    one, other = (rng.random((5, 2100)) < chance_Q + gain for gain in (0.0, 0.03))
    found = difference(one, other, ["dress"] * 700 + ["shirt"] * 700 + ["toptee"] * 700)
    assert found.low is not None
    assert found.low > 0
    assert found.p is not None
    assert found.p < 0.01
    assert difference(other, one, ONE * 2100).high < 0  # type: ignore[operator]  # it is not None


def test_one_seed_and_methods_that_answer_alike_have_no_interval_and_no_p() -> None:
    hits = np.array([[1, 0, 1]])
    assert difference(hits, 1 - hits, ONE * 3).low is None
    twice = np.tile(hits, (2, 1))
    found = difference(twice, twice, ONE * 3)
    assert (found.mean, found.low, found.high, found.p) == (0.0, None, None, None)


def test_the_same_hits_give_the_same_numbers() -> None:
    rng = np.random.default_rng(6)
    delta = simulate(rng, 0.2, 2.0, 0.5)
    one, other = np.zeros_like(delta), delta
    assert difference(one, other, ONE * 150) == difference(one, other, ONE * 150)
    assert difference(one, other, ONE * 150) != difference(one, other, ONE * 150, seed=1)


def test_holms_correction_of_a_hand_made_table() -> None:
    # sorted 0.01 0.02 0.03 0.04: times 4, 3, 2, 1 = 0.04 0.06 0.06 0.04, and never falling
    assert holm([0.03, 0.01, None, 0.04, 0.02]) == pytest.approx(
        [0.06, 0.04, None, 0.06, 0.06], nan_ok=True
    )
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([None]) == [None]
    assert holm([]) == []


@pytest.mark.parametrize(
    "categories",
    [
        [f"c{n}" for n in range(8)] + ["a"] * 30 + ["b"] * 30,
        ["a"] * 120 + ["b"] * 2,
        ["a"] * 120 + ["b"] * 3 + ["c"] * 3,
    ],
    ids=["alone", "two", "threes"],
)
def test_few_queries_of_a_category_are_chance_as_others_are(categories: list[str]) -> None:
    """Of two equal methods no more than 2.5% of the intervals lie above 0."""
    rng, above = np.random.default_rng(3), 0
    for _ in range(400):
        signs = rng.choice([0.0, 1.0, -1.0], len(categories), p=[0.4, 0.3, 0.3])
        twice = np.array([signs, signs])  # as `Answers.minus` has of what does not vary by seed
        found = difference(np.zeros_like(twice), twice, categories, resamples=200)
        above += found.low is not None and found.low > 0
    assert above / 400 <= 0.045  # 2.5% and twice the error of 400 draws


@pytest.mark.parametrize(
    ("categories", "strata"),
    [
        ("aaaaabbbbb", ["aaaaa", "bbbbb"]),
        ("aaaaaabbbbbc", ["aaaaaa", "bbbbbc"]),
        ("aaaaabbcd", ["aaaaabbcd"]),
        ("aaaaabbcde", ["aaaaa", "bbcde"]),
        ("aabb", ["aabb"]),
        ("abc", ["abc"]),
        ("a", ["a"]),
    ],
)
def test_categories_of_few_queries_are_a_stratum_together(
    categories: str, strata: list[str]
) -> None:
    found = statistics._strata(list(categories))
    assert ["".join(categories[at] for at in stratum) for stratum in found] == strata
