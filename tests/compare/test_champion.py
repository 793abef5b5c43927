"""A model takes another's place only where the same queries say so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from raycd.compare.champion import answers_table, judge
from raycd.evaluate import Metric

N = 400


def answers(found: list[bool], *, first: int = 0, **asked: Any) -> pa.Table:
    """Return answers that have a target at rank 1, or none."""
    ids = [f"t{first + number}" for number in range(len(found))]
    triplets = pa.table({"triplet_id": ids, "category": ["dress", "shirt"] * (len(ids) // 2)})
    ranks = {name: 1 if hit else None for name, hit in zip(ids, found, strict=True)}
    how: dict[str, Any] = {"protocol": "original", "gallery": {"dress": 9, "shirt": 8}}
    return answers_table(triplets, ranks, **(how | asked))


def hits(share: float, seed: int = 0) -> list[bool]:
    drawn: list[bool] = (np.random.default_rng(seed).random(N) < share).tolist()
    return drawn


def test_better_is_what_lies_above_zero_with_its_interval() -> None:
    champion = hits(0.5)
    much = [hit or more for hit, more in zip(champion, hits(0.2, seed=1), strict=True)]
    verdict = judge(answers(much), answers(champion), Metric())
    assert verdict.is_better
    assert verdict.reason.startswith("recall@10 +")
    gained = 100 * (sum(much) - sum(champion)) / N
    assert f"{gained:+.2f} points" in verdict.reason  # categories are of one size
    assert not judge(answers(champion), answers(much), Metric()).is_better


def test_a_chance_gain_is_none() -> None:
    champion = hits(0.5)
    bit = [not hit if number in (0, 2, 4, 7) else hit for number, hit in enumerate(champion)]
    gained = judge(answers(bit), answers(champion), Metric())
    assert not gained.is_better
    assert "95% interval [-" in gained.reason


def test_a_gain_of_every_query_is_told_and_not_believed() -> None:
    verdict = judge(answers([True, True]), answers([False, False]), Metric())
    assert not verdict.is_better
    assert verdict.reason == (
        "recall@10 +100.00 points, the same for every query: no spread says how sure that is"
    )


def test_no_queries_at_all_are_told() -> None:
    verdict = judge(answers([]), answers([]), Metric())
    assert (verdict.is_better, verdict.reason) == (False, "there are no queries to compare by")


def test_equals_and_what_was_asked_otherwise_are_not_better() -> None:
    own = answers(hits(0.5))
    assert judge(own, own, Metric()).reason == "recall@10 is the same for every query"
    none = answers([False] * N)
    for champion, reason in (
        (answers([False] * N, protocol="val"), "another protocol"),
        (answers([False] * N, gallery={"dress": 1}), "other galleries"),
        (answers([False] * N, first=1), "other queries"),
        (answers([False] * (N // 2)), "other queries"),
    ):
        verdict = judge(own, champion, Metric())
        assert not verdict.is_better
        assert reason in verdict.reason
    assert judge(own, none.take(list(range(N))[::-1]), Metric()).is_better
