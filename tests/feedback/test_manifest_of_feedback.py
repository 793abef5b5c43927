"""Triplets from feedback beside those of a data set, and back from the files."""

from __future__ import annotations

from pathlib import Path

import pytest

from raycd.data import manifest as reader
from raycd.data.build import DatasetBuilder, TripletRow
from raycd.data.schema import Dataset, targets_of
from raycd.feedback import manifest
from raycd.feedback.manifest import Known
from raycd.feedback.triplets import Learned

IMAGES = {
    **{f"d{n}": Known(("dress",), f"/d{n}.jpg", {"colour": "blue"}) for n in range(4)},
    "both": Known(("shirt", "dress"), "/both.jpg", {}),
    "unfiled": Known(("dress",), None, {}),
    "s0": Known(("shirt",), "/s0.jpg", {}),
}


@pytest.fixture
def base() -> Dataset:
    """Return a data set of one triplet to train on, one to evaluate on, and one of a category."""
    builder = DatasetBuilder()
    for split in ("train", "val"):
        builder.add_gallery("dress", split, ["d0", "d1", "d2"], source="x")
    rows = [
        TripletRow("t", "dress", "train", "d0", "d1", ["is red", "long"]),
        TripletRow("v", "dress", "val", "d0", "d2", ["is red"], further_targets=["d1"]),
    ]
    for row in rows:
        builder.add_triplet(row, where="here")
    return builder.build({"d0": "/d0.jpg", "d1": "/d1.jpg"}, {"d0": {"colour": "blue"}})


def learned(reference: str, target: str, *negatives: str, text: str = "is blue") -> Learned:
    return Learned(reference, text, target, 1.5, 2, negatives)


def test_only_triplets_of_images_that_are_there_and_that_val_does_not_ask_are_placed(
    base: Dataset,
) -> None:
    some = [
        learned("d1", "d3", "s0", "both", "gone", "unfiled"),
        learned("d1", "unfiled"),
        learned("d1", "gone"),
        learned("d1", "s0"),
        learned("d0", "d1"),
        learned("s0", "both"),
    ]
    placed = manifest.place(some, IMAGES, base.triplets_of("val"), held_back=0.0)
    assert [(row["category"], row["target"], row["negatives"]) for row in placed.train] == [
        ("dress", "d3", ["both"]),  # that of another category is none
        ("shirt", "both", None),
    ]
    assert placed.left_out == {
        "images that are gone": 1,
        "images without a file": 1,
        "no category in common": 1,
        "asked in val": 1,
    }
    assert placed.held_back == []


def test_feedback_on_top_of_feedback_counts_once(base: Dataset) -> None:
    some = [learned("d1", target, text=f"text {n}") for n in range(40) for target in ("d3", "both")]
    val = base.triplets_of("val")
    first = manifest.place(some, IMAGES, val, held_back=0.25)
    once = manifest.with_feedback(base, first.train, IMAGES, first.held_back)
    again = manifest.place(some[20:], IMAGES, val, held_back=0.5)
    twice = manifest.with_feedback(once, again.train, IMAGES, again.held_back)
    ids = twice.triplets["triplet_id"].to_pylist()
    assert len(ids) == len(set(ids))
    texts = {row["captions"][0] for row in again.held_back}
    left = {row["captions"][0] for row in twice.triplets_of("train").to_pylist()}
    assert not left & texts
    trained = {row["captions"][0] for row in first.train}
    assert trained & texts
    assert trained - texts <= left


def test_a_query_that_is_held_back_is_trained_on_with_no_target_of_an_earlier_time(
    base: Dataset,
) -> None:
    val = base.triplets_of("val")
    first = manifest.place(
        [learned("d1", target) for target in ("d3", "both")], IMAGES, val, held_back=0.0
    )
    once = manifest.with_feedback(base, first.train, IMAGES)
    now = manifest.place([learned("d1", "d3")], IMAGES, val, held_back=1.0)
    twice = manifest.with_feedback(once, now.train, IMAGES, now.held_back)
    assert [row["reference"] for row in twice.triplets_of("train").to_pylist()] == ["d0"]


def test_a_category_of_the_name_of_the_mean_has_no_triplets(base: Dataset, tmp_path: Path) -> None:
    """A live gallery may have it, a data set may not."""
    images = IMAGES | {
        "a0": Known(("average", "dress"), "/a0.jpg", {}),
        "a1": Known(("average",), "/a1.jpg", {}),
    }
    val = base.triplets_of("val")
    some = [learned("a0", "a1"), learned("a0", "d3")]
    placed = manifest.place(some, images, val, held_back=1.0)
    assert [(row["category"], row["target"]) for row in placed.held_back] == [("dress", "d3")]
    assert placed.left_out == {"no category in common": 1}
    manifest.write(manifest.held_back(placed.held_back, images), tmp_path)
    found = reader.read(str(tmp_path), manifest.TRIPLETS_FILE, manifest.GALLERY_FILE)
    assert "a0" in found.gallery_ids("dress", "val")


def test_the_same_queries_are_held_back_each_time_with_all_their_targets(base: Dataset) -> None:
    some = [
        learned("d1", target, text=f"text {n}") for n in range(400) for target in ("d3", "both")
    ]
    first, again = (
        manifest.place(own, IMAGES, base.triplets_of("val"), held_back=0.25)
        for own in (some, some[::-1])
    )
    texts = [{row["captions"][0] for row in own.held_back} for own in (first, again)]
    assert texts[0] == texts[1]
    assert len(texts[0]) == pytest.approx(100, abs=30)
    assert texts[0].isdisjoint(row["captions"][0] for row in first.train)
    assert {row["split"] for row in first.held_back} == {"val"}


def test_what_is_liked_for_one_query_is_right_for_all_of_its_triplets(base: Dataset) -> None:
    some = [*(learned("d1", one) for one in ("d3", "both")), learned("d2", "d3")]
    train, held = (
        manifest.place(some, IMAGES, base.triplets_of("val"), held_back=share)
        for share in (0.0, 1.0)
    )
    queries = [("d1", ["d3", "both"]), ("d1", ["both", "d3"]), ("d2", ["d3"])]
    assert [(row["reference"], targets_of(row)) for row in train.train] == queries
    assert [(row["reference"], targets_of(row)) for row in held.held_back] == [
        queries[0],
        queries[2],
    ]


def test_a_query_has_so_many_targets_and_no_more_those_of_most_weight(base: Dataset) -> None:
    many = {f"m{n}": Known(("dress",), f"/m{n}.jpg", {}) for n in range(manifest.MOST_TARGETS + 3)}
    some = [Learned("d1", "is blue", name, 1.0 + n, 2, ()) for n, name in enumerate(many)]
    placed = manifest.place(some, {**IMAGES, **many}, base.triplets_of("val"), held_back=0.0)
    assert {row["target"] for row in placed.train} == set(list(many)[3:])
    assert {len(row["further_targets"]) for row in placed.train} == {manifest.MOST_TARGETS - 1}
    assert placed.left_out == {"further targets of one query": 3}


def test_what_is_written_is_read_as_a_manifest(base: Dataset, tmp_path: Path) -> None:
    rows = manifest.place(
        [learned("d1", "d3", "d2")], IMAGES, base.triplets_of("val"), held_back=0.0
    ).train
    manifest.write(manifest.with_feedback(base, rows, IMAGES), tmp_path)
    found = reader.read(str(tmp_path), manifest.TRIPLETS_FILE, manifest.GALLERY_FILE)
    assert found.triplets.slice(0, 2).to_pylist() == base.triplets.to_pylist()
    [added] = found.triplets.slice(2).to_pylist()
    assert added == rows[0] | {"subset": None, "further_targets": None}
    assert found.gallery_ids("dress", "train") == ["d0", "d1", "d2", "d3"]
    assert found.gallery_ids("dress", "val") == ["d0", "d1", "d2"]
    images = {row["image_id"]: row for row in found.images.to_pylist()}
    assert images["d3"]["attributes"] == [("colour", "blue")]
    assert images["d3"]["path"] == "/d3.jpg"
    assert images["d2"]["path"].endswith("missing/d2")


def test_what_is_held_back_searches_the_whole_gallery(base: Dataset, tmp_path: Path) -> None:
    rows = manifest.place(
        [learned("d1", "d3", "d2")], IMAGES, base.triplets_of("val"), held_back=1.0
    ).held_back
    manifest.write(manifest.held_back(rows, IMAGES), tmp_path)
    found = reader.read(str(tmp_path), manifest.TRIPLETS_FILE, manifest.GALLERY_FILE)
    assert set(found.gallery_ids("dress", "val")) == {"d0", "d1", "d2", "d3", "both"}
    assert set(found.gallery_ids("shirt", "val")) == {"both", "s0"}
    assert [(row["target"], row["weight"]) for row in found.triplets.to_pylist()] == [("d3", None)]


def test_spellings_of_a_text_are_held_back_together(base: Dataset) -> None:
    some = [
        learned("d1", "d3", text=spelled)
        for n in range(40)
        for spelled in (f"text {n}", f"Text {n}.")
    ]
    placed = manifest.place(some, IMAGES, base.triplets_of("val"), held_back=0.5)
    held, trained = (
        {row["captions"][0].lower().strip(".") for row in rows}
        for rows in (placed.held_back, placed.train)
    )
    assert held
    assert trained
    assert not held & trained


def test_a_query_of_an_earlier_time_is_known_by_any_spelling(base: Dataset) -> None:
    val = base.triplets_of("val")
    [row] = manifest.place([learned("d1", "d3", text="Is red")], IMAGES, val, held_back=0.0).train
    row["triplet_id"] = "feedback/0123456789abcdef"  # as an earlier version called it
    earlier = manifest.with_feedback(base, [row], IMAGES)
    now = manifest.place([learned("d1", "d3", text="is red.")], IMAGES, val, held_back=1.0)
    found = manifest.with_feedback(earlier, now.train, IMAGES, now.held_back)
    assert len(now.held_back) == 1
    assert found.triplets_of("train")["triplet_id"].to_pylist() == ["t"]
