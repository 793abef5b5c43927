"""Answers: recalls out of ranks, and who is paired with whom."""

from __future__ import annotations

import pytest

from raycd.compare import Answers, difference
from raycd.evaluate import Metric

CATEGORIES = ["dress", "shirt", "dress"]


def test_recalls_are_of_each_seed_and_of_the_metrics_category_and_rank() -> None:
    found = Answers.of([[10, 11, None], [1, 50, 51]], CATEGORIES, [0, 1])
    assert found.recalls(Metric()) == pytest.approx([(1 / 2 + 0) / 2, (1 / 2 + 0) / 2])
    assert found.recalls(Metric(k=50)) == pytest.approx([(1 / 2 + 1) / 2, (1 / 2 + 1) / 2])
    assert found.recalls(Metric("dress", 51)) == [0.5, 1.0]


def test_methods_are_paired_by_the_seeds_that_both_have() -> None:
    one = Answers.of([[1, 99, 1], [1, 99, 99], [99, 99, 99]], CATEGORIES, [0, 1, 2])
    other = Answers.of([[1, 1, 1], [99, 1, 99]], CATEGORIES, [2, 0])
    hits = difference([[1, 0, 1], [0, 0, 0]], [[0, 1, 0], [1, 1, 1]], CATEGORIES)
    assert other.minus(one, Metric()) == difference(
        [[0, 0, 0], [1, 0, 1]], [[1, 1, 1], [0, 1, 0]], CATEGORIES
    )
    assert hits.mean == pytest.approx(other.minus(one, Metric()).mean)  # type: ignore[union-attr]  # it is not None


def test_methods_without_a_common_seed_have_no_difference() -> None:
    one, other = (Answers.of([[1, 2, 3]], CATEGORIES, [seed]) for seed in (0, 1))
    assert one.minus(other, Metric()) is None


def test_what_was_not_trained_stands_beside_every_seed() -> None:
    still = Answers.of([[1, 99, 1]], CATEGORIES, None)
    trained = Answers.of([[1, 1, 1], [1, 1, 99]], CATEGORIES, [3, 4])
    expected = difference([[1, 0, 1]] * 2, [[1, 1, 1], [1, 1, 0]], CATEGORIES)
    assert trained.minus(still, Metric()) == expected
    back = still.minus(trained, Metric())
    assert back is not None
    assert back.mean == pytest.approx(-expected.mean)
    assert still.spread(Metric()).low is None


def test_two_that_were_not_trained_differ_over_their_queries_alone() -> None:
    many = [*CATEGORIES] * 40
    one = Answers.of([[1, 99, 1] * 40], many, None)
    other = Answers.of([[1, 1, 99] * 40], many, None)
    found = other.minus(one, Metric())
    assert found is not None
    # dress: half lost, error sqrt(0.25 / 79) = 0.0563; shirt: all gained, no error
    assert found.mean == pytest.approx((1 - 0.5) / 2)
    assert found.high is not None
    assert found.high - found.mean == pytest.approx(1.990 * 0.0563 / 2, rel=0.05)
