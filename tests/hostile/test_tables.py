"""Tables and annotations as spreadsheets, pandas and broken exports write them."""

from __future__ import annotations

import decimal
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from raycd.client import gallery_table
from raycd.data import cirr, fashioniq, manifest
from raycd.data.captions import listed
from raycd.data.schema import Dataset
from raycd.errors import DataError

GALLERY = "image_id,path\na,a.jpg\nb,b.jpg\n"
TRIPLETS = "reference,target,caption\na,b,is red\n"
HALF = r"is red \ud83d"


def read(
    root: Path, gallery: str = GALLERY, triplets: str = TRIPLETS, suffix: str = ".csv"
) -> Dataset:
    (root / f"g{suffix}").write_text(gallery)
    (root / f"t{suffix}").write_text(triplets)
    return manifest.read(str(root), f"t{suffix}", f"g{suffix}")


def with_attributes(value: str) -> str:
    return '{"image_id": "a", "path": "a", "attributes": ' + value + "}"


def attributes(data: Dataset) -> dict[str, dict[str, str]]:
    return {row["image_id"]: dict(row["attributes"]) for row in data.images.to_pylist()}


def parquet(path: Path, columns: list[tuple[str, Any]]) -> None:
    table = pa.Table.from_arrays(
        [pa.array(values) for _, values in columns], names=[name for name, _ in columns]
    )
    pyarrow.parquet.write_table(table, path)


def test_a_spreadsheets_empty_columns_are_not_there(tmp_path: Path) -> None:
    data = read(
        tmp_path,
        "image_id,path,,colour, ,\na,a.jpg,,blue,,\nb,b.jpg,,red,,\n",
        "reference,target,caption,,\na,b,x,,\n",
    )
    assert attributes(data) == {"a": {"colour": "blue"}, "b": {"colour": "red"}}
    assert [image["image_id"] for image in gallery_table.read(tmp_path / "g.csv")] == ["a", "b"]


def test_spaces_around_a_columns_name_do_not_count(tmp_path: Path) -> None:
    data = read(tmp_path, "image_id, path ,colour \na,a.jpg,blue\nb,b.jpg,red\n")
    assert attributes(data) == {"a": {"colour": "blue"}, "b": {"colour": "red"}}


@pytest.mark.parametrize(
    ("gallery", "triplets", "message"),
    [
        (GALLERY, "reference,target,caption,caption\na,b,x,y\n", r"t.csv has 2 columns 'caption'"),
        ("image_id,path,colour,colour\na,a.jpg,x,y\n", TRIPLETS, r"g.csv has 2 columns 'colour'"),
        ("image_id,path,colour, colour\na,a.jpg,x,y\n", TRIPLETS, r"g.csv has 2 columns 'colour'"),
        ("image_id,image_id,path\na,b,a.jpg\n", TRIPLETS, r"g.csv has 2 columns 'image_id'"),
    ],
)
def test_two_columns_of_one_name_are_refused(
    tmp_path: Path, gallery: str, triplets: str, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, gallery, triplets)
    assert "rename one of them" in str(caught.value)
    if "g.csv" in message:
        with pytest.raises(DataError, match=message):
            gallery_table.read(tmp_path / "g.csv")


def test_two_columns_that_nobody_reads_may_have_one_name(tmp_path: Path) -> None:
    assert (
        len(read(tmp_path, triplets="reference,target,caption,note,note\na,b,x,y,z\n").triplets)
        == 1
    )


def test_two_columns_of_one_name_in_parquet_are_refused(tmp_path: Path) -> None:
    parquet(
        tmp_path / "g.parquet",
        [("image_id", ["a"]), ("path", ["a"]), ("colour", ["x"]), ("colour", ["y"])],
    )
    with pytest.raises(DataError, match=r"g.parquet has 2 columns 'colour'"):
        manifest.read(str(tmp_path), "t.parquet", "g.parquet")
    with pytest.raises(DataError, match=r"g.parquet has 2 columns 'colour'"):
        gallery_table.read(tmp_path / "g.parquet")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image_id": "a", "path": "a", "colour": "x", "colour": "y"}', "names 'colour' twice"),
        (
            '{"image_id": "a", "path": "a", "colour": "x", "colour ": "y"}',
            "g.jsonl, line 1 has 2 columns 'colour'",
        ),
        (
            '{"image_id": "a", "path": "a", "colour": "\\ud83d"}',
            "line 1 is not valid JSON[^£]*half a character",
        ),
        (
            '{"image_id": "a", "path": "a", "attributes": {"\\ud83d": "x"}}',
            "line 1[^£]*half a character",
        ),
        ('{"image_id": "\\udc00", "path": "a"}', "line 1 is not valid JSON[^£]*half a character"),
        (with_attributes('{"a":' * 10**5 + "1" + "}" * 10**5), "nested too deep"),
        (with_attributes("[" * 900 + "]" * 900), "attributes has the wrong shape"),
        (with_attributes(json.dumps("[" * 10**5)), "nested too deep"),
        (with_attributes(json.dumps('{"x": "\\ud83d"}')), "half a character"),
    ],
    ids=[
        "twice",
        "twice but for a space",
        "half",
        "half name",
        "half id",
        "deep",
        "less deep",
        "deep text",
        "half text",
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, line + "\n", "", ".jsonl")
    assert "g.jsonl" in str(caught.value)
    str(caught.value).encode()


def test_whole_characters_of_two_halves_are_read(tmp_path: Path) -> None:
    gallery = '{"image_id": "a", "path": "a"}\n'
    data = read(
        tmp_path, gallery, r'{"reference": "a", "target": "a", "caption": "\ud83d\udc57"}', ".jsonl"
    )
    assert data.triplets["captions"].to_pylist() == [["\N{DRESS}"]]


def test_half_a_character_in_a_triplet_is_refused(tmp_path: Path) -> None:
    gallery = '{"image_id": "a", "path": "a"}\n'
    whole = '{"reference": "a", "target": "a", "caption": "x"}\n'
    lines = whole + whole.replace("x", HALF)
    with pytest.raises(DataError, match=r"t.jsonl, line 2") as caught:
        read(tmp_path, gallery, lines, ".jsonl")
    assert r"'is red \\ud83d'" in str(caught.value)


def test_half_a_character_in_fashioniq_is_refused(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name, content in (("captions/cap", "[]"), ("image_splits/split", '["a"]')):
            file = tmp_path / f"{name}.dress.{split}.json"
            file.parent.mkdir(exist_ok=True)
            file.write_text(content)
    file = tmp_path / "captions" / "cap.dress.train.json"
    file.write_text('[{"candidate": "a", "target": "a", "captions": ["x", "\\ud83d"]}]')
    with pytest.raises(
        DataError, match=r"cap.dress.train.json[^£]*entry 0, captions, entry 1: half a character"
    ):
        fashioniq.read(str(tmp_path), ["dress"])
    file.write_text("[]")
    (tmp_path / "attributes.json").write_text('{"a": {"colour": "\\ud83d"}}')
    with pytest.raises(DataError, match=r"attributes.json[^£]*a, colour: half a character"):
        fashioniq.read(str(tmp_path), ["dress"])


def test_half_a_character_in_cirr_is_refused(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name, content in (("captions/cap", "[]"), ("image_splits/split", '{"a": "./a.png"}')):
            file = tmp_path / f"{name}.rc2.{split}.json"
            file.parent.mkdir(exist_ok=True)
            file.write_text(content)
    (tmp_path / "image_splits" / "split.rc2.val.json").write_text('{"a": "./\\ud83d.png"}')
    with pytest.raises(DataError, match=r"split.rc2.val.json[^£]*a: half a character"):
        cirr.read(str(tmp_path))


def test_parquet_that_holds_no_text_is_refused(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff\xfe"]).buffers())
    parquet(tmp_path / "g.parquet", [("image_id", ["a"]), ("path", ["a"]), ("colour", broken)])
    with pytest.raises(DataError, match=r"g.parquet cannot be read as parquet"):
        manifest.read(str(tmp_path), "t.parquet", "g.parquet")


LISTS = [
    ("['is red', 'no belt']", ["is red", "no belt"]),
    ('["is red", "no belt"]', ["is red", "no belt"]),
    ("""["isn't red", 'no "belt"']""", ["isn't red", 'no "belt"']),
    ("['is red' 'no belt']", ["is red", "no belt"]),
    ("['is red'\n 'no belt']", ["is red", "no belt"]),
    ("['is red']", ["is red"]),
    (r'["is \u00fcber red"]', ["is über red"]),
]


@pytest.mark.parametrize(("text", "texts"), LISTS)
@pytest.mark.parametrize("column", ["caption", "captions"])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_lists_written_as_text_are_read_as_lists(
    tmp_path: Path, text: str, texts: list[str], column: str, suffix: str
) -> None:
    (tmp_path / "g.csv").write_text(GALLERY)
    columns = [("reference", ["a"]), ("target", ["b"]), (column, [text])]
    if suffix == ".parquet":
        parquet(tmp_path / "t.parquet", columns)
    else:
        quoted = '"' + text.replace('"', '""') + '"'
        (tmp_path / "t.csv").write_text(f"reference,target,{column}\na,b,{quoted}\n")
    assert manifest.read(str(tmp_path), f"t{suffix}", "g.csv").triplets["captions"].to_pylist() == [
        texts
    ]


@pytest.mark.parametrize(
    "text", ["[is red]", "[red] or blue", "is [red]", "['red'] or blue", "[1, 2]", "[None]", "["]
)
def test_captions_with_brackets_stay_captions(text: str) -> None:
    assert listed(text) is None


@pytest.mark.parametrize(
    "text",
    ["[]", "['is red', None]", '["is red", 7]', "['is red', no belt]", "['is red]", r"['\ud83d']"],
)
def test_what_begins_like_a_list_and_is_none_is_refused(tmp_path: Path, text: str) -> None:
    quoted = '"' + text.replace('"', '""') + '"'
    with pytest.raises(DataError, match=r"t.csv, row 1 has no usable caption") as caught:
        read(tmp_path, triplets=f"reference,target,captions\na,b,{quoted}\n")
    assert '["is red", "no belt"]' in str(caught.value)


@pytest.mark.parametrize("bars", ["is red|no belt", " is red | no belt "])
def test_bars_still_part_captions(tmp_path: Path, bars: str) -> None:
    data = read(tmp_path, triplets=f"reference,target,captions\na,b,{bars}\n")
    assert data.triplets["captions"].to_pylist() == [["is red", "no belt"]]


def test_every_kind_of_number_and_text_is_an_attribute(tmp_path: Path) -> None:
    price = pa.array([decimal.Decimal("12.50"), decimal.Decimal("10.00")], pa.decimal128(10, 2))
    wide = pa.array([decimal.Decimal("-" + "123" * 15 + ".5"), None], pa.decimal256(60, 3))
    columns = [
        ("image_id", pa.array(["a", "b"], pa.string_view())),
        ("path", ["a.jpg", "b.jpg"]),
        ("price", price),
        ("wide", wide),
        ("colour", pa.array(["blue", None], pa.string_view())),
        ("size", pa.array(["s", "m"]).dictionary_encode()),
        ("half", pa.array([1.5, 2.0], pa.float16())),
    ]
    parquet(tmp_path / "g.parquet", columns)
    (tmp_path / "t.csv").write_text(TRIPLETS)
    assert attributes(manifest.read(str(tmp_path), "t.csv", "g.parquet")) == {
        "a": {
            "price": "12.5",
            "wide": "-" + "123" * 15 + ".5",
            "colour": "blue",
            "size": "s",
            "half": "1.5",
        },
        "b": {"price": "10", "size": "m", "half": "2"},
    }


def test_a_category_named_average_is_refused_when_it_is_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"g.csv has a category 'average'"):
        read(tmp_path, "image_id,path,category\na,a.jpg,average\n")


@pytest.mark.parametrize(
    ("gallery", "triplets"),
    [
        ("image_id,path,category\na,a.jpg,shoe\nb,b.jpg,hat\n", TRIPLETS),
        (GALLERY, "reference,target,caption,category\na,b,x,shoe\n"),
        (
            "image_id,path,category\na,a.jpg,shoe\nb,b.jpg,hat\n",
            "reference,target,caption,category\na,b,x,shoe\n",
        ),
    ],
    ids=["gallery alone", "triplets alone", "a triplet between classes"],
)
def test_who_puts_a_class_into_category_is_told_the_way_out(
    tmp_path: Path, gallery: str, triplets: str
) -> None:
    with pytest.raises(DataError, match=r"t.csv, row 1") as caught:
        read(tmp_path, gallery, triplets)
    assert re.search(
        r"leave the column `category` out .* attribute|attribute: leave the column",
        str(caught.value),
    )


def test_thousands_of_categories_do_not_fill_the_message(tmp_path: Path) -> None:
    rows = "".join(f"{i},{i}.jpg,kind {i}\n" for i in range(3000))
    with pytest.raises(DataError, match="and 5990 more") as caught:
        read(tmp_path, f"image_id,path,category\n{rows}", "reference,target,caption\n1,2,x\n")
    assert len(str(caught.value)) < 1500
