"""Candidates of one side and of rare texts, by hand."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from raycd.config import MineConfig
from raycd.data.schema import TRIPLET
from raycd.mine import CANDIDATES, choose_examples, eligible

CAPTIONS = {
    "a": ["is blue", "Long sleeves"],
    "b": ["Is  blue", "long sleeves "],  # the same but for case and spaces
    "c": ["is blue", "long sleeves"],
    "d": ["is red", "long sleeves"],
    "e": ["is red", "long sleeves"],
    "f": ["has a bow", ""],
}


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
    """Return two candidates of each triplet, the second of which was not scored."""
    rows = [
        dict.fromkeys(("pool", "replaced", "substitute", "reference", "target"), name)
        | {"side": side, "triplet_id": name, "category": "dress", "similarity": 0.9}
        | {"rank": rank, "truncated": False, "score": None if rank else 0.8}
        for name in CAPTIONS
        for rank in range(2)
    ]
    return pa.Table.from_pylist(rows, schema=CANDIDATES.with_metadata({b"how": b"mined"}))


@pytest.mark.parametrize(
    ("at_most", "kept"), [(0, "abcdef"), (1, "f"), (2, "def"), (3, "abcdef"), (99, "abcdef")]
)
def test_candidates_are_kept_whose_text_stands_in_few_triplets(at_most: int, kept: str) -> None:
    found = eligible(candidates(), triplets(), MineConfig(rare_texts=at_most))
    assert found["triplet_id"].to_pylist() == [name for name in kept for _ in range(2)]
    assert found.schema.equals(candidates().schema, check_metadata=True)


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
    assert found.schema.equals(table.schema, check_metadata=True)


def test_examples_are_of_rare_texts_alone() -> None:
    settings = MineConfig(eps_low=0.85, eps_high=0.95, alpha=0.5, rare_texts=2)
    mined = {"neighbours": 4, "floor": 0.8, "encoder": "abc", "images": 2}
    table = candidates().replace_schema_metadata({"raycd.mine": json.dumps(mined)})
    found = choose_examples(table, triplets(), settings, count=9, seed=0)
    assert {*found["triplet_id"].to_pylist()} <= {*"def"}
    assert len(found) > 0
