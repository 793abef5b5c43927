import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from raycd.data import fashioniq
from raycd.data.schema import GALLERY, IMAGE, TRIPLET
from raycd.errors import DataError

REAL = Path(__file__).parents[2] / ".." / "shared" / "data" / "fashion-iq"
COUNTS = {  # category, split: triplets, images, images of a triplet
    ("dress", "train"): (5985, 11452, None),
    ("shirt", "train"): (5988, 19036, None),
    ("toptee", "train"): (6027, 16121, None),
    ("dress", "val"): (2017, 3817, 2628),
    ("shirt", "val"): (2038, 6346, 3089),
    ("toptee", "val"): (1961, 5373, 2902),
    ("dress", "test"): (2024, 3818, None),
    ("shirt", "test"): (2038, 6346, None),
    ("toptee", "test"): (2056, 5374, None),
}


def triplet(candidate: str, target: str | None, *captions: str) -> dict[str, Any]:
    return {"candidate": candidate, "captions": list(captions)} | (
        {"target": target} if target else {}
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a data set of two categories that share image S; dress has a test split."""
    write_split(tmp_path, "dress", "train", ["D1", "S", "D2"], [triplet("D1", "S", "is red", "")])
    write_split(tmp_path, "dress", "val", ["D3", "D4"], [triplet("D3", "D4", "is long", "is blue")])
    write_split(tmp_path, "dress", "test", ["D5"], [triplet("D5", None, "is short", "is green")])
    write_split(
        tmp_path,
        "shirt",
        "train",
        ["T1", "S"],
        [triplet("T1", "S", "a", "b"), triplet("S", "T1", "c", "d")],
    )
    write_split(tmp_path, "shirt", "val", ["T2", "T3"], [triplet("T2", "T3", "e", "f")])
    return tmp_path


def write_split(
    root: Path, category: str, split: str, ids: list[str], triplets: list[dict[str, Any]]
) -> None:
    for folder, prefix, content in (("captions", "cap", triplets), ("image_splits", "split", ids)):
        (root / folder).mkdir(exist_ok=True)
        (root / folder / f"{prefix}.{category}.{split}.json").write_text(json.dumps(content))


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def test_tables_follow_the_schema_and_the_order_of_the_annotations(root: Path) -> None:
    data = fashioniq.read(str(root), ["dress", "shirt"])
    assert (data.images.schema, data.gallery.schema, data.triplets.schema) == (
        IMAGE,
        GALLERY,
        TRIPLET,
    )
    assert data.categories() == ["dress", "shirt"]
    assert data.gallery_ids("dress", "train") == ["D1", "S", "D2"]
    assert data.triplets["triplet_id"].to_pylist() == [
        "dress/train/0",
        "dress/val/0",
        "shirt/train/0",
        "shirt/train/1",
        "shirt/val/0",
    ]
    assert data.triplets.to_pylist()[0] == {
        "triplet_id": "dress/train/0",
        "category": "dress",
        "split": "train",
        "reference": "D1",
        "target": "S",
        "captions": ["is red", ""],
        "subset": None,
        "further_targets": None,
        "weight": None,
        "negatives": None,
    }


def test_attributes_stand_beside_the_annotations(root: Path) -> None:
    said = {"D1": {"colour": "red", "pockets": 2}, "S": {}, "nobody": {"colour": "blue"}}
    (root / "attributes.json").write_text(json.dumps(said))
    data = fashioniq.read(str(root), ["dress"], ["train"])
    assert data.images.schema == IMAGE
    assert data.images["attributes"].to_pylist() == [[("colour", "red"), ("pockets", "2")], [], []]


def test_an_id_of_two_categories_is_one_image(root: Path) -> None:
    data = fashioniq.read(str(root), ["dress", "shirt"])
    assert data.images["image_id"].to_pylist() == ["D1", "S", "D2", "D3", "D4", "T1", "T2", "T3"]
    assert "S" in data.gallery_ids("shirt", "train")


def test_targets_of_the_test_split_are_null(root: Path) -> None:
    assert fashioniq.read(str(root), ["dress"], ["test"]).triplets["target"].to_pylist() == [None]


def test_images_are_found_in_every_known_layout(root: Path) -> None:
    touch(
        root,
        "images/D1.jpg",
        "images/D1.png",
        "dress/D2.JPEG",
        "images/shirt/T1.png",
        "shirt/S.jpg",
        "images/D3.txt",
    )
    images = fashioniq.read(str(root), ["dress", "shirt"]).images.to_pylist()
    assert {
        row["image_id"]: row["path"] and str(Path(row["path"]).relative_to(root)) for row in images
    } == {
        "D1": "images/D1.jpg",
        "S": "shirt/S.jpg",
        "D2": "dress/D2.JPEG",
        "D3": None,
        "D4": None,
        "T1": "images/shirt/T1.png",
        "T2": None,
        "T3": None,
    }


def test_a_root_may_be_a_uri(root: Path) -> None:
    touch(root, "images/D1.jpg")
    memory = fsspec.filesystem("memory")
    memory.put(f"{root}/", "/fiq/", recursive=True)
    try:
        data = fashioniq.read("memory://fiq", ["dress"])
        path = data.images["path"].to_pylist()[0]
        assert path == "memory://fiq/images/D1.jpg"
        with fsspec.open(path) as file:
            assert file.read() == b"x"
    finally:
        memory.rm("/fiq", recursive=True)


def test_a_relative_root_gives_absolute_paths(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(root, "images/D1.jpg")
    monkeypatch.chdir(root.parent)
    assert (
        fashioniq.read(root.name, ["dress"]).images["path"].to_pylist()[0]
        == f"{root}/images/D1.jpg"
    )


def break_json(root: Path) -> None:
    (root / "captions/cap.dress.val.json").write_text('[\n  {"candidate": }\n]')


def break_encoding(root: Path) -> None:
    (root / "captions/cap.dress.val.json").write_bytes(b'["\xff\xfe"]')


def break_entry(root: Path) -> None:
    write_split(
        root, "dress", "val", ["D3", "D4"], [triplet("D3", "D4", "x", "y"), {"candidate": "D3"}]
    )


def break_target(root: Path) -> None:
    write_split(root, "dress", "val", ["D3", "D4"], [triplet("D3", None, "x", "y")])


def break_list(root: Path) -> None:
    (root / "image_splits/split.dress.val.json").write_text("{}")


def break_id(root: Path) -> None:
    (root / "image_splits/split.dress.val.json").write_text('["D3", 4]')


def break_membership(root: Path) -> None:
    write_split(root, "dress", "val", ["D3", "D4"], [triplet("D3", "D1", "x", "y")])


def break_uniqueness(root: Path) -> None:
    write_split(root, "dress", "val", ["D3", "D3"], [])


def remove_file(root: Path) -> None:
    (root / "image_splits/split.dress.val.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (break_json, ["cap.dress.val.json is not valid JSON", "line 2, column 17"]),
        (break_encoding, ["cap.dress.val.json is not valid JSON"]),
        (break_entry, ["cap.dress.val.json, entry 1 has the wrong shape", "candidate, target"]),
        (break_target, ["cap.dress.val.json, entry 0 has the wrong shape"]),
        (break_list, ["split.dress.val.json has the wrong shape", "a list of image ids"]),
        (break_id, ["split.dress.val.json, entry 1 has the wrong shape", "4"]),
        (
            break_membership,
            ["entry 0 names an image outside its split", "D1", "image_splits/split.dress.val.json"],
        ),
        (break_uniqueness, ["image_splits/split.dress.val.json names an image twice", "D3"]),
        (remove_file, ["captions/cap.dress.val.json", "also image_splits/split.dress.val.json"]),
    ],
)
def test_a_spoilt_annotation_is_named(
    root: Path, spoil: Callable[[Path], None], parts: list[str]
) -> None:
    spoil(root)
    with pytest.raises(DataError) as caught:
        fashioniq.read(str(root), ["dress"])
    for part in parts:
        assert part in str(caught.value)


def test_an_unknown_category_gets_the_nearest_name(root: Path) -> None:
    with pytest.raises(DataError, match="one of dress, shirt") as caught:
        fashioniq.read(str(root), ["dresses"])
    assert "did you mean dress?" in str(caught.value)


@pytest.mark.parametrize("bad", ["", "absent", "nosuchprotocol://x"])
def test_an_absent_folder_is_named(tmp_path: Path, bad: str) -> None:
    with pytest.raises(DataError, match=r"data\.root"):
        fashioniq.read(bad if "://" in bad or not bad else str(tmp_path / bad), ["dress"])


def test_a_folder_without_annotations_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file in captions/ or image_splits/"):
        fashioniq.read(str(tmp_path), ["dress"])


@pytest.mark.skipif(
    not REAL.is_dir(), reason="the Fashion-IQ annotations are not at ../shared/data/fashion-iq"
)
def test_the_real_annotations_have_their_known_counts() -> None:
    data = fashioniq.read(str(REAL), ["dress", "shirt", "toptee"], ["train", "val", "test"])
    assert data.images.num_rows == 74381
    assert data.images["path"].null_count == 74381
    triplets = data.triplets.to_pylist()
    assert {len(row["captions"]) for row in triplets} == {2}
    for (category, split), (queries, images, used) in COUNTS.items():
        rows = [row for row in triplets if (row["category"], row["split"]) == (category, split)]
        assert (len(rows), len(data.gallery_ids(category, split))) == (queries, images)
        if used is not None:
            assert len({row[side] for row in rows for side in ("reference", "target")}) == used
    empty = [
        (row["category"], row["split"])
        for row in triplets
        for caption in row["captions"]
        if caption == ""
    ]
    assert {key: empty.count(key) for key in empty} == {
        ("toptee", "train"): 12,
        ("toptee", "val"): 2,
        ("shirt", "val"): 1,
        ("shirt", "test"): 1,
    }
