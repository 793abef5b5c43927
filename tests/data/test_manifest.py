from pathlib import Path
from typing import Any

import pytest

from raycd.data import manifest, rows
from raycd.data.folder import Folder
from raycd.data.read import content_hash
from raycd.errors import DataError
from tests.data.manifests import GALLERY, TRIPLETS, read


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_every_format_gives_the_same_tables(tmp_path: Path, suffix: str) -> None:
    data = read(tmp_path, GALLERY, TRIPLETS, suffix)
    assert data.images.to_pylist() == [
        {"image_id": "001", "path": f"{tmp_path}/img/1.jpg", "attributes": []},
        {"image_id": "002", "path": "s3://bucket/2.jpg", "attributes": []},
    ]
    assert data.gallery_ids("all", "train") == data.gallery_ids("all", "val") == ["001", "002"]
    assert data.triplets.to_pylist() == [
        {
            "triplet_id": "all/train/0",
            "category": "all",
            "split": "train",
            "reference": "001",
            "target": "002",
            "captions": ["is, in short, red"],
            "subset": None,
            "further_targets": None,
            "weight": None,
            "negatives": None,
        }
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_triplet_may_have_a_weight_and_negatives(tmp_path: Path, suffix: str) -> None:
    negatives = "a|c" if suffix == ".csv" else ["a", "c"]
    gallery = [{"image_id": name, "path": f"/{name}.jpg"} for name in "abc"]
    common: dict[str, Any] = {"reference": "a", "target": "b", "caption": "x"}
    own: dict[str, Any] = {"weight": 2.5, "negatives": negatives}
    rows = [common | own, common | {"weight": None, "negatives": "" if suffix == ".csv" else None}]
    found = read(tmp_path, gallery, rows, suffix).triplets.to_pylist()
    assert [(row["weight"], row["negatives"]) for row in found] == [
        (2.5, ["a", "c"]),
        (None, None),
    ]


@pytest.mark.parametrize(
    ("column", "value"),
    [*(("weight", value) for value in (0, -1.0, "much", True)), ("negatives", [1.5])],
)
def test_a_wrong_weight_or_negative_is_named(tmp_path: Path, column: str, value: Any) -> None:
    rows = [TRIPLETS[0] | {column: value}]
    with pytest.raises(DataError, match=f"row 1 has no usable {column}"):
        read(tmp_path, GALLERY, rows)
    with pytest.raises(DataError, match="names an unknown image"):
        read(tmp_path, GALLERY, [TRIPLETS[0] | {"negatives": ["003"]}])


def test_a_weight_and_negatives_change_the_hash_of_the_content(tmp_path: Path) -> None:
    gallery = [GALLERY[0], GALLERY[1] | {"path": "img/2.jpg"}]
    hashes = {
        content_hash(read(tmp_path, gallery, [TRIPLETS[0] | own]))
        for own in ({}, {"weight": 2.0}, {"weight": 3.0}, {"negatives": ["001"]})
    }
    assert len(hashes) == 4


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_several_captions_categories_and_splits(tmp_path: Path, suffix: str) -> None:
    captions = "is red|is long" if suffix == ".csv" else ["is red", "is long"]
    gallery = [
        {"image_id": "a", "path": "/a.jpg", "category": "hat", "split": "train"},
        {"image_id": "b", "path": "/b.jpg", "category": "hat", "split": "train"},
        {"image_id": "b", "path": "/b.jpg", "category": "shoe", "split": "val"},
        {"image_id": "b", "path": "/b.jpg", "category": "shoe", "split": "val"},
    ]
    triplets = [
        {
            "reference": "a",
            "target": "b",
            "captions": captions,
            "triplet_id": "x",
            "category": "hat",
            "split": "train",
        },
        {
            "reference": "b",
            "target": "b",
            "captions": captions,
            "triplet_id": "y",
            "category": "shoe",
            "split": "val",
        },
    ]
    data = read(tmp_path, gallery, triplets, suffix)
    assert data.images["image_id"].to_pylist() == ["a", "b"]
    assert data.gallery_ids("shoe", "val") == ["b"]
    assert data.triplets["captions"].to_pylist() == [["is red", "is long"]] * 2
    assert data.triplets["triplet_id"].to_pylist() == ["x", "y"]


def test_whole_number_ids_become_text(tmp_path: Path) -> None:
    data = read(
        tmp_path,
        [{"image_id": 7, "path": "7.jpg"}],
        [{"reference": 7, "target": 7, "caption": "x"}],
        ".parquet",
    )
    assert data.triplets["reference"].to_pylist() == ["7"]


def test_a_test_triplet_needs_no_target(tmp_path: Path) -> None:
    triplets = [{"reference": "a", "target": None, "caption": "x", "split": "test"}]
    data = read(tmp_path, [{"image_id": "a", "path": "a.jpg", "split": "test"}], triplets)
    assert data.triplets["target"].to_pylist() == [None]


@pytest.mark.parametrize(
    ("gallery", "triplets", "parts"),
    [
        (
            [{"image": "001", "path": "x"}],
            TRIPLETS,
            ["g.jsonl lacks a column", "image, path", "also image_id"],
        ),
        (
            GALLERY,
            [{"reference": "001", "target": "002"}],
            ["t.jsonl lacks a column", "also captions"],
        ),
        (
            GALLERY,
            [{"reference": "001", "target": "9", "caption": "x"}],
            ["t.jsonl, row 1", "unknown image", "9"],
        ),
        (
            [*GALLERY, {"image_id": "001", "path": "img/3.jpg"}],
            TRIPLETS,
            ["g.jsonl, row 3 gives an image another path", "img/3.jpg", "as in row 1"],
        ),
        (
            [
                {**GALLERY[0], "colour": "blue", "split": "train"},
                {**GALLERY[0], "colour": "red", "split": "val"},
            ],
            TRIPLETS,
            [
                "g.jsonl, row 2 gives an image other attributes",
                "001: {'colour': 'red'}",
                "as in row 1",
            ],
        ),
        (
            [{**GALLERY[0], "attributes": "blue"}],
            TRIPLETS,
            ["g.jsonl, row 1, attributes has the wrong shape", "'blue'", "an object in JSON"],
        ),
        (
            [{**GALLERY[0], "attributes": ["blue"]}],
            TRIPLETS,
            [
                "g.jsonl, row 1, attributes has the wrong shape",
                "['blue']",
                "an object: name -> value",
            ],
        ),
        (
            [*GALLERY, {"image_id": None, "path": "x"}],
            TRIPLETS,
            ["g.jsonl, row 3 has no usable image_id", "null"],
        ),
        (
            [*GALLERY, {"image_id": "3", "path": ""}],
            TRIPLETS,
            ["g.jsonl, row 3 has no usable path"],
        ),
        (GALLERY, [{**TRIPLETS[0], "target": None}], ["t.jsonl, row 1 has no usable target"]),
        (GALLERY, [{**TRIPLETS[0], "caption": None}], ["t.jsonl, row 1 has no usable caption"]),
        (GALLERY, [{**TRIPLETS[0], "captions": []}], ["t.jsonl, row 1 has no usable caption"]),
        (
            GALLERY,
            [{**TRIPLETS[0], "split": "dev"}],
            ["t.jsonl, row 1 names an unknown split", "train, val, test"],
        ),
        (
            GALLERY,
            [{**TRIPLETS[0], "category": "hat"}],
            ["t.jsonl, row 1 belongs to a gallery that has no images"],
        ),
        (
            [{**GALLERY[0], "split": "train"}, {**GALLERY[1], "split": "val"}],
            TRIPLETS,
            ["t.jsonl, row 1 names an image outside its split", "002"],
        ),
        (
            GALLERY,
            [{**TRIPLETS[0], "triplet_id": "x"}] * 2,
            ["t.jsonl, row 2 repeats a triplet's id", "x"],
        ),
    ],
)
def test_a_spoilt_row_is_named(
    tmp_path: Path, gallery: Any, triplets: Any, parts: list[str]
) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, gallery, triplets)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "g.jsonl",
            '{"image_id": "a", "path": "a"}\n\n{oops}\n',
            "g.jsonl, line 3 is not valid JSON",
        ),
        ("g.jsonl", "[1]\n", "g.jsonl, line 1 is not an object"),
        ("g.csv", "image_id,path\na,b,c\n", "g.csv cannot be read as csv"),
        ("g.csv", "", "g.csv cannot be read as csv"),
        ("g.parquet", "PAR0", "g.parquet cannot be read as parquet"),
        ("g.xlsx", "x", "g.xlsx is in an unknown format"),
    ],
)
def test_a_malformed_file_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        manifest.read(str(tmp_path), "t.jsonl", name)


def test_a_file_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    (tmp_path / "g.csv").write_bytes("image_id,path,Größe\na,a.jpg,38\n".encode("cp1252"))
    folder, message = Folder(str(tmp_path)), r"g\.csv cannot be read as csv(.|\n)*UTF-8"
    with pytest.raises(DataError, match=message):
        rows.read(folder, "g.csv", ["image_id"])
    with pytest.raises(DataError, match=message):
        list(rows.blocks(folder, "g.csv", ["image_id"], 9))


def test_a_folder_is_no_table_and_a_disk_that_fails_is_not_called_a_damaged_one(
    tmp_path: Path,
) -> None:
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match=r"folder\.csv cannot be read as csv(.|\n)*a directory"):
        list(rows.blocks(Folder(str(tmp_path)), "folder.csv", ["image_id"], 9))
    (tmp_path / "g.csv").symlink_to("/proc/self/mem")  # its first page cannot be read
    for name, got in (("g.csv", "Input/output error"), ("absent.csv", "No such file")):
        with pytest.raises(DataError, match=f"{got}(.|\n)*check the name, and the disk"):
            list(rows.blocks(Folder(str(tmp_path)), name, ["image_id"], 9))


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"g\.csv cannot be read"):
        manifest.read(str(tmp_path), "t.csv", "g.csv")


SEVERAL = [{"image_id": name, "path": f"{name}.jpg"} for name in ("a", "b", "c", "d")]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("with_target", [False, True])
def test_a_triplet_may_have_several_targets(tmp_path: Path, suffix: str, with_target: bool) -> None:
    targets: Any = ["b", "c", "d"] if suffix != ".csv" else "b|c|d"
    row = {"reference": "a", "targets": targets, "caption": "is red", "split": "val"}
    data = read(tmp_path, SEVERAL, [row | ({"target": "c"} if with_target else {})], suffix)
    [found] = data.triplets.to_pylist()
    # A target of its own comes first, and each is named once
    assert (found["target"], found["further_targets"]) == (
        ("c", ["b", "d"]) if with_target else ("b", ["c", "d"])
    )


def test_targets_in_one_field_are_a_list_or_texts_with_bars(tmp_path: Path) -> None:
    rows = [
        {"reference": "a", "targets": text, "caption": "is red"}
        for text in ("b|c", '["b", "c"]', "['b', 'c']", "b")
    ]
    numbered = [{**row, "image_id": str(n)} for n, row in enumerate(SEVERAL)]
    whole = [{"reference": "0", "targets": "[1, 2]", "caption": "is red"}]
    (tmp_path / "numbers").mkdir()
    [number] = read(tmp_path / "numbers", numbered, whole, ".csv").triplets.to_pylist()
    assert (number["target"], number["further_targets"]) == ("1", ["2"])
    found = read(tmp_path, SEVERAL, rows, ".csv").triplets
    assert found["target"].to_pylist() == ["b"] * 4
    assert found["further_targets"].to_pylist() == [["c"], ["c"], ["c"], None]


def test_a_row_without_targets_takes_its_target(tmp_path: Path) -> None:
    rows = [
        {"reference": "a", "target": "b", "targets": None, "caption": "is red", "split": "val"},
        {"reference": "a", "target": None, "targets": None, "caption": "is red", "split": "test"},
    ]
    gallery = [{**row, "split": split} for row in SEVERAL for split in ("val", "test")]
    found = read(tmp_path, gallery, rows).triplets
    assert found["target"].to_pylist() == ["b", None]
    assert found["further_targets"].to_pylist() == [None, None]


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"targets": ["b", None]}, ["row 1 has no usable targets", "image ids"]),
        ({"targets": {"b": 1}}, ["row 1 has no usable targets"]),
        ({"targets": ["b", "z"]}, ["row 1 names an unknown image", "z"]),
        ({"targets": []}, ["row 1 has no usable targets", "fill targets"]),
    ],
)
def test_wrong_targets_are_named(tmp_path: Path, row: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, SEVERAL, [{"reference": "a", "caption": "is red", **row}])
    for part in parts:
        assert part in str(caught.value)
