import json
from pathlib import Path
from typing import Any

import pytest

from raycd.data import cirr
from raycd.errors import DataError

MEMBERS = ["a", "b", "c", "d", "e", "f"]


def entry(pairid: int, target: str | None, members: list[str] = MEMBERS) -> dict[str, Any]:
    made: dict[str, Any] = {
        "pairid": pairid,
        "reference": "a",
        "caption": "show two dogs",
        "img_set": {"members": members},
    }
    return made | ({"target_hard": target, "target_soft": {target: 1.0}} if target else {})


def write_split(root: Path, split: str, entries: Any, names: list[str]) -> None:
    for folder in ("captions", "image_splits"):
        (root / folder).mkdir(exist_ok=True)
    (root / f"captions/cap.rc2.{split}.json").write_text(json.dumps(entries))
    paths = {name: f"./{split}/{index % 2}/{name}.png" for index, name in enumerate(names)}
    (root / f"image_splits/split.rc2.{split}.json").write_text(json.dumps(paths))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_split(tmp_path, "train", [entry(7, "b"), entry(9, "c")], MEMBERS)
    write_split(tmp_path, "val", [entry(7, "b")], [*MEMBERS, "g"])
    write_split(tmp_path, "test1", [entry(3, None)], MEMBERS)
    return tmp_path


def test_triplets_carry_their_subset_and_pair_id(root: Path) -> None:
    data = cirr.read(str(root))
    assert data.triplets["triplet_id"].to_pylist() == ["cirr/train/7", "cirr/train/9", "cirr/val/7"]
    assert data.triplets.to_pylist()[0] == {
        "triplet_id": "cirr/train/7",
        "category": "cirr",
        "split": "train",
        "reference": "a",
        "target": "b",
        "captions": ["show two dogs"],
        "subset": ["a", "b", "c", "d", "e", "f"],
        "further_targets": None,
        "weight": None,
        "negatives": None,
    }
    assert data.categories() == ["cirr"]
    assert data.gallery_ids("cirr", "val") == ["a", "b", "c", "d", "e", "f", "g"]


def test_test1_is_the_test_split_without_targets(root: Path) -> None:
    data = cirr.read(str(root), ["test"])
    assert data.triplets.select(["triplet_id", "split", "target"]).to_pylist() == [
        {"triplet_id": "cirr/test/3", "split": "test", "target": None}
    ]


def test_images_are_found_beside_the_annotations_or_in_img_raw(root: Path) -> None:
    for name in ("train/0/a.png", "img_raw/train/1/b.png", "img_raw/train/0/a.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    assert cirr.read(str(root), ["train"]).images["path"].to_pylist() == [
        f"{root}/train/0/a.png",
        f"{root}/img_raw/train/1/b.png",
        *[None] * 4,
    ]


def test_attributes_stand_beside_the_annotations(root: Path) -> None:
    (root / "attributes.json").write_text(json.dumps({"b": {"animal": "dog"}}))
    images = cirr.read(str(root), ["train"]).images.to_pylist()
    assert {row["image_id"]: dict(row["attributes"]) for row in images if row["attributes"]} == {
        "b": {"animal": "dog"}
    }


@pytest.mark.parametrize(
    ("entries", "names", "parts"),
    [
        (
            [entry(1, "b"), {"pairid": 2}],
            MEMBERS,
            ["cap.rc2.val.json, entry 1 has the wrong shape", "img_set.members"],
        ),
        ([entry(1, None)], MEMBERS, ["entry 0 has the wrong shape", "target_hard"]),
        (["text"], MEMBERS, ["entry 0 has the wrong shape"]),
        ({"a": 1}, MEMBERS, ["cap.rc2.val.json has the wrong shape", "a list of triplets"]),
        ([entry(1, "z")], MEMBERS, ["entry 0 names an image outside its split", "z"]),
        (
            [entry(1, "b", ["a", "b", "y"])],
            MEMBERS,
            ["entry 0 names an image outside its split", "y"],
        ),
        ([entry(1, "b"), entry(1, "c")], MEMBERS, ["entry 1 repeats a triplet's id", "cirr/val/1"]),
    ],
)
def test_a_spoilt_entry_is_named(
    tmp_path: Path, entries: Any, names: list[str], parts: list[str]
) -> None:
    write_split(tmp_path, "val", entries, names)
    with pytest.raises(DataError) as caught:
        cirr.read(str(tmp_path), ["val"])
    for part in parts:
        assert part in str(caught.value)


def test_a_missing_file_is_named(root: Path) -> None:
    (root / "captions/cap.rc2.val.json").unlink()
    with pytest.raises(DataError, match=r"also captions/cap\.rc2\.val\.json"):
        cirr.read(str(root))


def test_an_unknown_split_is_refused(root: Path) -> None:
    with pytest.raises(DataError, match="some of train, val, test"):
        cirr.read(str(root), ["test1"])
