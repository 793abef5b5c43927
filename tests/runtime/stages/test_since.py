"""What an earlier version did otherwise is done again, in the runs alone that it changes."""

from __future__ import annotations

from typing import Any

import pytest

from raycd.config import Config
from raycd.data.build import DatasetBuilder, TripletRow
from raycd.data.schema import Dataset
from raycd.runtime.stages import since

STAGES = ("zero_shot", "stage1", "embed", "mine", "stage2", "evaluate", "bundle")


def dataset(split: str = "", column: str = "") -> Dataset:
    """Return one triplet of each split; that of one has a subset or a further target."""
    builder = DatasetBuilder()
    for own in ("train", "selection", "val"):
        builder.add_gallery("all", own, ["a", "b", "c"], source="here")
        more: dict[str, Any] = (
            {column: ["b", "c"] if column == "subset" else ["c"]} if own == split else {}
        )
        builder.add_triplet(TripletRow(own, "all", own, "a", "b", ["is red"], **more), where="here")
    return builder.build({})


def test_stage_1_chooses_anew_by_subsets_of_the_split_that_is_held_out() -> None:
    for select_by, expected in ((["recall_subset@1"], ["stage1"]), (["recall@10"], [])):
        config = Config.model_validate({"name": "x", "stage1": {"select_by": select_by}})
        data = dataset("selection", "subset")
        assert [one for one in STAGES if since.changes(one, config, data)] == expected


def changed(data: Dataset, **stage2: object) -> list[str]:
    config = Config.model_validate({"name": "x", "stage2": stage2})
    return [stage for stage in STAGES if since.changes(stage, config, data)]


def test_nothing_is_done_again_for_triplets_of_one_target_without_subsets() -> None:
    assert changed(dataset(), head="dcnet") == []


def test_further_targets_of_train_are_learnt_anew() -> None:
    assert changed(dataset("train", "further_targets"), head="combiner") == ["stage1"]
    assert changed(dataset("val", "further_targets"), head="combiner") == []


@pytest.mark.parametrize(
    ("split", "stage2", "expected"),
    [
        ("val", {"head": "dcnet"}, ["evaluate"]),
        ("val", {"head": "combiner"}, []),
        ("val", {"head": "dcnet", "select_by": ["recall_subset@1"]}, ["evaluate"]),
        ("selection", {"head": "dcnet", "select_by": ["recall_subset@1"]}, ["stage2"]),
        ("selection", {"head": "dcnet"}, []),
    ],
)
def test_subsets_are_ranked_anew_where_the_head_re_ranks(
    split: str, stage2: dict[str, object], expected: list[str]
) -> None:
    assert changed(dataset(split, "subset"), **stage2) == expected
