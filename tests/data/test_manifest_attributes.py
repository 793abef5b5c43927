"""Attributes of images in the columns of a manifest."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from raycd.data import manifest
from raycd.data.schema import Dataset
from tests.data.manifests import GALLERY, TRIPLETS, read, write


def attributes(data: Dataset) -> dict[str, dict[str, str]]:
    return {row["image_id"]: dict(row["attributes"]) for row in data.images.to_pylist()}


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_further_columns_of_the_gallery_are_attributes(tmp_path: Path, suffix: str) -> None:
    gallery: list[dict[str, Any]] = [
        {
            **GALLERY[0],
            "colour": "blue",
            "size": "038",
            "price": 12.5,
            "stock": 3,
            "sale": True,
            "": "x",
            "_row": 1,
        },
        {
            **GALLERY[1],
            "colour": " red ",
            "size": "",
            "price": None,
            "stock": None,
            "sale": None,
            "": "y",
            "_row": 2,
        },
    ]
    data = read(tmp_path, gallery, TRIPLETS, suffix)
    assert attributes(data) == {
        "001": {"colour": "blue", "size": "038", "price": "12.5", "stock": "3", "sale": "true"},
        "002": {"colour": "red"},
    }


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_columns_that_are_no_plain_values_are_no_attributes(tmp_path: Path, suffix: str) -> None:
    gallery = [{**row, "tags": ["a", "b"], "score": float("nan"), "note": "new"} for row in GALLERY]
    assert attributes(read(tmp_path, gallery, TRIPLETS, suffix)) == {
        "001": {"note": "new"},
        "002": {"note": "new"},
    }


def test_a_column_of_categories_is_an_attribute(tmp_path: Path) -> None:
    colours = pa.array(["blue", "red"]).dictionary_encode()
    table = pa.Table.from_pylist(GALLERY).append_column("colour", colours)
    pyarrow.parquet.write_table(table, tmp_path / "g.parquet")
    data = manifest.read(str(tmp_path), write(tmp_path / "t.jsonl", TRIPLETS), "g.parquet")
    assert attributes(data) == {"001": {"colour": "blue"}, "002": {"colour": "red"}}


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        (".jsonl", "object"),
        (".jsonl", "json"),
        (".csv", "json"),
        (".parquet", "object"),
        (".parquet", "json"),
    ],
)
def test_a_column_attributes_takes_the_place_of_the_others(
    tmp_path: Path, suffix: str, kind: str
) -> None:
    given: list[dict[str, Any]] = [
        {"colour": "blue", "floors": 2},
        {"colour": "red", "floors": None},
    ]
    column: list[Any] = [json.dumps(one) for one in given] if kind == "json" else list(given)
    gallery = [
        {**row, "attributes": one, "note": "x"} for row, one in zip(GALLERY, column, strict=True)
    ]
    data = read(tmp_path, gallery, TRIPLETS, suffix)
    assert attributes(data) == {"001": {"colour": "blue", "floors": "2"}, "002": {"colour": "red"}}


def test_attributes_can_be_a_map_of_arrow(tmp_path: Path) -> None:
    column = pa.array([[("colour", "blue")], None], pa.map_(pa.string(), pa.string()))
    table = pa.Table.from_pylist(GALLERY).append_column("attributes", column)
    pyarrow.parquet.write_table(table, tmp_path / "g.parquet")
    data = manifest.read(str(tmp_path), write(tmp_path / "t.jsonl", TRIPLETS), "g.parquet")
    assert attributes(data) == {"001": {"colour": "blue"}, "002": {}}
