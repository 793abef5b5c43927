"""Candidates of one side and of rare texts, by hand."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest

from raycd.config import MineConfig
from raycd.data.schema import TRIPLET
from raycd.mine import CANDIDATES, eligible, filter_candidates
from raycd.mine.neighbours import META
from raycd.report.examples import choose_examples

CAPTIONS = {
    "a": ["is blue", "Long sleeves"],
    "b": ["Is  blue", "long sleeves "],  # the same but for case and spaces
    "c": ["is blue", "long sleeves"],
    "d": ["is red", "long sleeves"],
    "e": ["is red", "long sleeves"],
    "f": ["has a bow", ""],
}
MINED = {"neighbours": 4, "floor": 0.8, "encoder": "abc", "images": 2}


def triplets() -> pa.Table:
    rows = [
        {
            "triplet_id": name,
            "category": "dress",
            "split": "train",
            "reference": "i0",
            "target": "i1",
            "captions": captions,
        }
        for name, captions in CAPTIONS.items()
    ]
    return pa.Table.from_pylist(rows, schema=TRIPLET)


def candidates(side: str = "target") -> pa.Table:
    """Return two candidates of each triplet, the second of which was not scored: of a, b and c
    because it is the triplet of others, of the rest because it asks for no change.
    """
    rows = [
        dict.fromkeys(("replaced", "substitute", "reference", "target"), name)
        | {"side": side, "triplet_id": name, "category": "dress", "similarity": 0.9}
        | {"rank": rank, "truncated": False, "score": None if rank else 0.8, "pool": ""}
        | ({"reference": "i0"} if name in "abc" else {})
        for name in CAPTIONS
        for rank in range(2)
    ]
    return pa.Table.from_pylist(rows, schema=CANDIDATES.with_metadata({META: json.dumps(MINED)}))


@pytest.mark.parametrize(
    ("at_most", "kept"), [(0, "abcdef"), (1, "f"), (2, "def"), (3, "abcdef"), (99, "abcdef")]
)
def test_candidates_are_kept_whose_text_stands_in_few_triplets(at_most: int, kept: str) -> None:
    found = eligible(candidates(), triplets(), MineConfig(rare_texts=at_most))
    assert found["triplet_id"].to_pylist() == [name for name in kept for _ in range(2)]
    assert found.schema.equals(candidates().schema)
    assert json.loads(found.schema.metadata[META]) == MINED
    _, counts = filter_candidates(found, eps_low=0.85, eps_high=0.95, s_max=4, alpha=0.5)
    assert counts["known_pairs"] == len(set(kept) & set("abc"))


def test_the_counts_of_rare_texts_are_those_of_what_is_left() -> None:
    thresholds: dict[str, Any] = {"eps_low": 0.85, "eps_high": 0.95, "s_max": 4, "alpha": 0.5}
    _, counts = filter_candidates(
        eligible(candidates(), triplets(), MineConfig(rare_texts=2)), **thresholds
    )
    assert (counts["known_pairs"], counts["degenerate"], counts["images"]) == (0, 3, 2)
    _, counts = filter_candidates(
        eligible(candidates(), triplets(), MineConfig(rare_texts=3)), **thresholds
    )
    assert (counts["known_pairs"], counts["degenerate"], counts["images"]) == (3, 3, 2)


def test_images_that_were_not_searched_are_not_counted() -> None:
    found = eligible(candidates(), triplets(), MineConfig(replace="target"), {"i1"})
    assert json.loads(found.schema.metadata[META])["images"] == 0  # their reference was not read
    found = eligible(candidates(), triplets(), MineConfig(replace="target"), {"i0", "i1"})
    assert json.loads(found.schema.metadata[META])["images"] == 1


@pytest.mark.parametrize(
    ("replace", "kept"),
    [("both", ["target", "reference"]), ("reference", ["reference"]), ("target", ["target"])],
)
def test_candidates_are_kept_whose_image_of_the_chosen_side_is_replaced(
    replace: str, kept: list[str]
) -> None:
    table = pa.concat_tables([candidates("target"), candidates("reference")])
    found = eligible(table, triplets(), MineConfig.model_validate({"replace": replace}))
    assert found["side"].to_pylist() == [side for side in kept for _ in range(12)]
    assert found.schema.equals(table.schema)
    meta = json.loads(found.schema.metadata[META])
    if replace == "both":
        assert meta == MINED
    else:  # one image and the known pairs of this side
        _, counts = filter_candidates(found, eps_low=0.85, eps_high=0.95, s_max=4, alpha=0.5)
        assert (meta["images"], counts["images"], counts["known_pairs"]) == (1, 1, 3)


def test_examples_are_of_rare_texts_alone() -> None:
    settings = MineConfig(eps_low=0.85, eps_high=0.95, alpha=0.5, rare_texts=2)
    found = choose_examples(candidates(), triplets(), settings, count=9, seed=0)
    assert {*found["triplet_id"].to_pylist()} <= {*"def"}
    assert len(found) > 0
