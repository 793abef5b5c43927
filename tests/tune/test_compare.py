"""The winner against the default: means, intervals and the sentence, against numbers worked out by
hand.
"""

from __future__ import annotations

from typing import Any

import pytest

from raycd.evaluate import Metric
from tune.finals import paired, summary, verdict


def recalls(at_10: float, at_50: float = 0.5, dress: float = 0.0) -> dict[str, Any]:
    return {"average": {"recall@10": at_10, "recall@50": at_50}, "dress": {"recall@10": dress}}


def test_the_interval_of_five_differences_is_students() -> None:
    # mean 0.03; deviations -0.02 -0.01 0 0.01 0.02, variance 0.001/4; t of 4 degrees of freedom is
    # 2.776445
    mean, margin = paired([0.01, 0.02, 0.03, 0.04, 0.05])
    assert mean == pytest.approx(0.03)
    assert margin == pytest.approx(2.776445 * (0.001 / 4) ** 0.5 / 5**0.5, rel=1e-6)
    assert margin == pytest.approx(0.0196324, abs=1e-7)


def test_the_interval_of_two_differences() -> None:
    # mean 0.02, standard deviation 0.02/sqrt(2), of the mean 0.01; t of 1 degree of freedom is
    # 12.706205
    assert paired([0.01, 0.03]) == pytest.approx((0.02, 0.12706205), rel=1e-6)


def test_equal_differences_have_no_interval() -> None:
    assert paired([0.25, 0.25, 0.25]) == (0.25, None)
    mean, margin = paired([0.4 - 0.1, 0.5 - 0.2])  # equal but for rounding
    assert mean == pytest.approx(0.3)
    assert margin is None


@pytest.mark.parametrize(
    ("change", "words"), [(-0.0043, "is no"), (0.0, "is no"), (0.0043, "may be")]
)
def test_too_few_seeds_are_told_in_place_of_an_interval_without_width(
    change: float, words: str
) -> None:
    default, winner = [recalls(0.3), recalls(0.4)], [recalls(0.3 + change), recalls(0.4 + change)]
    result = summary(default, winner, [Metric(), Metric(k=50)])
    assert not result["better"]
    assert verdict(result) == (
        f"the winner {words} better than the default: "
        f"{100 * change:+.2f} points of recall@10 on val "
        "with each of 2 seeds, too few for an interval: give more --tune.seeds"
    )


def test_the_summary_pairs_seed_by_seed_and_takes_every_metric() -> None:
    default = [recalls(0.30, 0.60), recalls(0.40, 0.50), recalls(0.20, 0.70)]
    winner = [recalls(0.32, 0.60), recalls(0.43, 0.40), recalls(0.24, 0.80)]
    found = summary(default, winner, [Metric(), Metric(k=50)])
    assert (found["seeds"], found["better"]) == (3, True)
    first, second = found["metrics"]["recall@10"], found["metrics"]["recall@50"]
    # differences 0.02 0.03 0.04: deviation 0.01, of the mean 0.01/sqrt(3); t of 2 degrees of
    # freedom is 4.302653
    margin = 4.302653 * 0.01 / 3**0.5
    assert first == pytest.approx(
        {
            "default": 0.3,
            "winner": 0.33,
            "difference": 0.03,
            "low": 0.03 - margin,
            "high": 0.03 + margin,
        },
        rel=1e-6,
    )
    # differences 0 -0.1 0.1: deviation 0.1
    margin = 4.302653 * 0.1 / 3**0.5
    assert second == pytest.approx(
        {"default": 0.6, "winner": 0.6, "difference": 0.0, "low": -margin, "high": margin},
        rel=1e-6,
        abs=1e-9,
    )


def test_the_first_metric_decides_and_it_may_be_a_categorys() -> None:
    default = [recalls(0.5, dress=0.1), recalls(0.5, dress=0.2)]
    winner = [recalls(0.4, dress=0.3), recalls(0.4, dress=0.42)]
    found = summary(default, winner, [Metric("dress"), Metric()])
    assert found["better"]
    assert found["metrics"]["dress/recall@10"]["difference"] == pytest.approx(0.21)
    assert found["metrics"]["recall@10"]["difference"] == pytest.approx(-0.1)


def test_an_interval_that_holds_zero_is_not_better() -> None:
    assert not summary([recalls(0.3), recalls(0.3)], [recalls(0.31), recalls(0.33)], [Metric()])[
        "better"
    ]


def test_verdict_on_a_better_winner() -> None:
    default, winner = (
        [recalls(0.30), recalls(0.40), recalls(0.20)],
        [recalls(0.32), recalls(0.43), recalls(0.24)],
    )
    assert verdict(summary(default, winner, [Metric()])) == (
        "the winner is better than the default: +3.00 points of recall@10 on val "
        "[+0.52, +5.48], 95% interval over 3 seeds"
    )


def test_verdict_on_a_winner_that_is_no_better() -> None:
    assert verdict(
        summary([recalls(0.3), recalls(0.3)], [recalls(0.29), recalls(0.27)], [Metric()])
    ) == (
        "the winner is no better than the default: -2.00 points of recall@10 on val "
        "[-14.71, +10.71], 95% interval over 2 seeds"
    )


def test_a_winner_with_the_same_numbers_is_no_better_and_is_not_taken_for_the_default() -> None:
    rows = [recalls(0.30), recalls(0.40)]
    assert verdict(summary(rows, rows, [Metric()])).startswith(
        "the winner is no better than the default: +0.00 points"
    )


def test_verdict_where_the_default_itself_has_won() -> None:
    default = [recalls(0.30), recalls(0.40)]
    assert verdict(summary(default, None, [Metric()])) == (
        "no trial was better than the default settings: 35.00% recall@10 on val"
    )
