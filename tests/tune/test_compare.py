"""The winner against the default: means, intervals and the sentence, against numbers worked out by
hand. Their statistics are those of tests/compare.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from raycd.compare import Answers
from raycd.evaluate import Metric
from tune.finals import summary, verdict

CATEGORIES = ["dress", "dress", "shirt", "shirt"]
DEFAULT = [[1, 60, 1, 60], [1, 11, 1, 60]]  # ranks by seed and query
BETTER = [[1, 60, 1, 1], [1, 1, 1, 60]]


def answers(ranks: Sequence[Sequence[int | None]], times: int = 1) -> Answers:
    """Return answers to `times` as many queries, all of them alike."""
    return Answers.of(
        [[*row] * times for row in ranks], CATEGORIES * times, list(range(len(ranks)))
    )


def test_the_summary_has_means_and_paired_differences_of_every_metric() -> None:
    found = summary(answers(DEFAULT), answers(BETTER), [Metric(), Metric(k=50), Metric("dress")])
    assert (found["seeds"], found["queries"], found["default_won"]) == (2, 4, False)
    at_10, at_50, dress = found["metrics"].values()
    assert list(found["metrics"]) == ["recall@10", "recall@50", "dress/recall@10"]
    # The default finds 2 of 4 with each seed, the winner 3 of 4: a quarter more, twice.
    assert (at_10["default"], at_10["winner"], at_10["difference"]) == (0.5, 0.75, 0.25)
    assert (at_50["default"], at_50["winner"], at_50["difference"]) == (0.625, 0.75, 0.125)
    assert (dress["default"], dress["winner"], dress["difference"]) == (0.5, 0.75, 0.25)
    assert at_10["low"] < 0.25 < at_10["high"]


def test_the_interval_is_that_of_the_comparisons_of_heads() -> None:
    default, winner = answers(DEFAULT, 50), answers(BETTER, 50)
    found = summary(default, winner, [Metric()])["metrics"]["recall@10"]
    same = winner.minus(default, Metric())
    assert same is not None
    assert (found["low"], found["high"], found["p"]) == (same.low, same.high, same.p)


def test_the_first_metric_decides_and_it_may_be_a_categorys() -> None:
    worse_shirts = [[1, 1, 60, 60]] * 2
    default = [[1, 60, 1, 60]] * 2
    found = summary(
        answers(default, 50), answers(worse_shirts, 50), [Metric("dress"), Metric("shirt")]
    )
    assert found["better"]
    assert found["metrics"]["dress/recall@10"]["difference"] == pytest.approx(0.5)
    assert found["metrics"]["shirt/recall@10"]["difference"] == pytest.approx(-0.5)


def test_verdict_on_a_better_winner() -> None:
    default, winner = [[1, 60, 1, 60]] * 2, [[1, 1, 1, 60]] * 2
    # dress: of 100 queries 50 are gained: variance 0.25, of the mean 0.25 / 99; shirt: none.
    # The average's error is half of sqrt(0.25 / 99) = 0.02513, its t of 99 degrees 1.9842.
    result = summary(answers(default, 50), answers(winner, 50), [Metric()])
    row = result["metrics"]["recall@10"]
    assert (row["low"], row["high"]) == pytest.approx((0.2001, 0.2999), abs=0.002)
    assert verdict(result) == (
        "the winner is better than the default: +25.00 points of recall@10 on val "
        f"[{100 * row['low']:+.2f}, {100 * row['high']:+.2f}], "
        "95% interval over 2 seeds and 200 queries"
    )


def test_an_interval_that_holds_zero_is_no_better() -> None:
    default, winner = [[1, 60, 1, 60]] * 2, [[1, 60, 1, 1], [1, 60, 60, 60]]
    result = summary(answers(default, 50), answers(winner, 50), [Metric()])
    assert not result["better"]
    assert verdict(result).startswith(
        "the winner is no better than the default: +0.00 points of recall@10 on val [-"
    )


def test_a_winner_with_the_same_answers_is_no_better_and_is_not_taken_for_the_default() -> None:
    assert verdict(summary(answers(DEFAULT), answers(DEFAULT), [Metric()])) == (
        "the winner is no better than the default: +0.00 points of recall@10 on val, "
        "with the same answers to every query"
    )


def test_verdict_where_the_default_itself_has_won() -> None:
    found = summary(answers(DEFAULT), None, [Metric()])
    assert verdict(found) == (
        "no trial was better than the default settings: 50.00% recall@10 on val"
    )
