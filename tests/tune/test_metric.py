"""The metric that trials are judged by, as a user names it."""

from __future__ import annotations

import pytest

from raycd.errors import ConfigError
from raycd.evaluate import Metric

CATEGORIES, KS = ["dress", "shirt"], [10, 50]


@pytest.mark.parametrize(
    ("name", "category", "k", "shown"),
    [
        ("recall@10", "average", 10, "recall@10"),
        ("recall@50", "average", 50, "recall@50"),
        ("average/recall@50", "average", 50, "recall@50"),
        ("dress/recall@10", "dress", 10, "dress/recall@10"),
        ("shirt/recall@50", "shirt", 50, "shirt/recall@50"),
    ],
)
def test_a_metric_by_its_name(name: str, category: str, k: int, shown: str) -> None:
    metric = Metric.parse(name, CATEGORIES, KS)
    assert (metric.category, metric.k, str(metric)) == (category, k, shown)


def test_recall_at_10_is_there_whatever_ranks_are_evaluated() -> None:
    assert Metric.parse("recall@10", CATEGORIES, [1, 5]) == Metric("average", 10)


def test_its_value_is_that_of_its_category() -> None:
    recalls = {
        "dress": {"recall@10": 0.25, "recall@50": 0.5},
        "average": {"recall@10": 0.3, "recall@50": 0.6},
    }
    assert Metric.parse("recall@50", CATEGORIES, KS).of(recalls) == 0.6
    assert Metric.parse("dress/recall@10", CATEGORIES, KS).of(recalls) == 0.25


@pytest.mark.parametrize(
    "name",
    [
        "recall@5",
        "precision",
        "sofa/recall@10",
        "/recall@10",
        "dress",
        "dress/",
        "dress/recall",
        "recall@10 ",
    ],
)
def test_a_metric_that_does_not_exist_is_told_with_those_that_do(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Metric.parse(name, CATEGORIES, KS)
    assert str(caught.value) == (
        f"there is no such metric\n  got:      {name}\n"
        "  expected: recall@10 or recall@50, alone or after one of: dress/, shirt/\n"
        "  to do:    correct the metric, or measure other ranks by --evaluate.ks"
    )
