"""Examples of pseudo triplets, chosen from tables made by hand."""

import json
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest

from raycd.config import MineConfig
from raycd.data.schema import TRIPLET
from raycd.mine.candidates import CANDIDATES
from raycd.report.examples import EXAMPLE, choose_examples

SETTINGS = MineConfig(eps_low=0.9, eps_high=0.99, alpha=0.6, s_max=2, neighbours=4)
NONE = TRIPLET.empty_table()  # what the triplets say counts only where rare_texts is set


class Row(NamedTuple):
    """A candidate: the target of its triplet is replaced."""

    triplet: str
    similarity: float
    score: float | None
    substitute: str
    rank: int = 0
    replaced: str = ""  # the target of its triplet, unless given


def table(*rows: Row) -> pa.Table:
    """Return table CANDIDATES; each triplet's target is an image of its own."""
    columns: list[dict[str, Any]] = [
        {
            "triplet_id": row.triplet,
            "category": "dress",
            "pool": "",
            "side": "target",
            "replaced": row.replaced or f"of-{row.triplet}",
        }
        | {
            "substitute": row.substitute,
            "reference": "r",
            "target": row.substitute,
            "similarity": row.similarity,
        }
        | {"rank": row.rank, "truncated": False, "score": row.score}
        for row in rows
    ]
    meta = {"neighbours": 4, "floor": 0.8, "encoder": "abc", "images": len(rows)}
    return pa.Table.from_pylist(columns, schema=CANDIDATES).replace_schema_metadata(
        {"raycd.mine": json.dumps(meta)}
    )


def chosen(
    candidates: pa.Table, *, count: int = 8, seed: int = 0
) -> dict[str, list[tuple[str, str, float]]]:
    """Return group -> (triplet, nearest threshold, distance)."""
    found = choose_examples(candidates, NONE, SETTINGS, count=count, seed=seed)
    assert found.schema == EXAMPLE
    groups: dict[str, list[tuple[str, str, float]]] = {"good": [], "borderline": [], "refused": []}
    for row in found.to_pylist():
        groups[row["group"]].append((row["triplet_id"], row["near"], row["distance"]))
    return groups


HAND_MADE = table(
    Row("middle", 0.945, 0.8, "a"),  # 0.045 from both similarities: the farthest
    Row("wide", 0.94, 0.7, "b"),  # 0.04 above eps_low
    Row("inside", 0.96, 0.7, "c"),  # 0.03 below eps_high
    Row("near-low", 0.901, 0.8, "d"),
    Row("near-high", 0.988, 0.8, "e"),
    Row("near-alpha", 0.945, 0.6003, "f"),
    Row("next-alpha", 0.945, 0.6004, "g"),
    Row("at-alpha", 0.945, 0.6, "h"),  # alpha must be exceeded
    Row("under-alpha", 0.945, 0.59, "i"),
    Row("below", 0.89, 0.9, "j"),
    Row("above", 0.995, 0.9, "k"),
    Row("nothing", 0.945, None, "l"),
)


def test_examples_stand_in_three_groups_with_the_nearest_threshold_and_its_distance() -> None:
    assert chosen(HAND_MADE) == {
        "good": [("middle", "eps_low", 0.045), ("wide", "eps_low", 0.04)],
        "borderline": [
            ("near-alpha", "alpha", 0.0003),
            ("next-alpha", "alpha", 0.0004),
            ("near-low", "eps_low", 0.001),
        ],
        "refused": [("at-alpha", "alpha", 0.0), ("under-alpha", "alpha", 0.01)],
    }


def test_the_thresholds_take_turns() -> None:
    """Twenty are nearer to alpha than the one near eps_low is to that; it is shown nevertheless."""
    crowd = [Row(f"t{i}", 0.945, 0.6001 + i * 1e-5, f"s{i}") for i in range(20)]
    far = [Row(f"far{i}", 0.945, 0.9, f"far{i}") for i in range(30)]
    found = chosen(
        table(*crowd, *far, Row("low", 0.9015, 0.9, "x"), Row("high", 0.988, 0.9, "y")), count=4
    )
    assert [name for name, _, _ in found["borderline"]] == ["t0", "t1", "low", "high"]
    assert len(found["good"]) == 4


def test_a_group_holds_at_most_count_and_each_triplet_and_pair_of_images_once() -> None:
    rows = [Row(f"t{i // 2}", 0.945, 0.61 + 0.001 * i, f"s{i}", rank=i % 2) for i in range(40)]
    found = choose_examples(table(*rows), NONE, SETTINGS, count=5, seed=0).to_pylist()
    for group in ("good", "borderline"):
        own = [row["triplet_id"] for row in found if row["group"] == group]
        assert len(own) == len(set(own)) == 5
    pairs = [
        ("a", "b"),
        ("b", "a"),
        ("a", "c"),
    ]  # an image and its substitute, the same two turned round, another
    same = [
        Row(f"t{i}", 0.945, 0.5 - 0.01 * i, new, replaced=old) for i, (old, new) in enumerate(pairs)
    ]
    assert chosen(table(*same))["refused"] == [("t0", "alpha", 0.1), ("t2", "alpha", 0.12)]


def test_candidates_beyond_s_max_are_no_examples() -> None:
    rows = [Row("t", 0.95 - 0.001 * rank, 0.5, f"s{rank}", rank) for rank in range(4)]
    only_last = [row if row.rank == 2 else row._replace(score=None) for row in rows]
    assert chosen(table(*only_last))["refused"] == []
    assert chosen(table(*rows))["refused"] == [("t", "alpha", 0.1)]


def test_the_same_seed_chooses_the_same_and_another_draws_others() -> None:
    rng = np.random.default_rng(0)
    numbers = np.round(rng.uniform([0.9, 0.4], [0.99, 0.9], (200, 2)), 6).tolist()
    rows = [
        Row(f"t{i}", similarity, score, f"s{i}") for i, (similarity, score) in enumerate(numbers)
    ]
    first, again, other = (chosen(table(*rows), seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first["good"] != other["good"]
    assert first["refused"] == other["refused"]  # the nearest are the nearest


@pytest.mark.parametrize(("rows", "expected"), [([], 0), ([Row("t", 0.95, 0.7, "s")], 1)])
def test_few_candidates_are_few_examples(rows: list[Row], expected: int) -> None:
    found = chosen(table(*rows))
    assert len(found["good"]) == expected
    assert found["borderline"] == found["refused"] == []
