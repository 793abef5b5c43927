"""The gallery of a bundle: positions, filters and counts, against tables written by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raycd.gallery import static
from raycd.gallery.static import Gallery


@pytest.fixture
def gallery() -> Gallery:
    attributes: Any = [[("colour", "red"), ("sleeves", "long")], [], [("colour", "blue")], None]
    table = pa.table(
        {
            "image_id": ["a", "b", "c", "d"],
            "categories": pa.array(
                [["dress"], ["shirt", "toptee"], ["dress", "shirt"], None], pa.list_(pa.string())
            ),
            "path": ["/pictures/a.jpg", None, "s3://bucket/c.jpg", None],
            "attributes": pa.array(attributes, pa.map_(pa.string(), pa.string())),
            "feature": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(8, np.float32)), 2),
        }
    )
    return Gallery(table)


def test_what_is_known_of_an_image(gallery: Gallery) -> None:
    assert len(gallery) == 4
    assert (gallery.position("c"), gallery.position("nobody")) == (2, None)
    assert [gallery.image_id(row) for row in range(4)] == ["a", "b", "c", "d"]
    assert [gallery.category(row) for row in range(4)] == ["dress", "shirt", "dress", ""]
    assert [gallery.path(row) for row in range(2)] == ["/pictures/a.jpg", None]
    assert [gallery.attributes(row) for row in (0, 1, 3)] == [
        {"colour": "red", "sleeves": "long"},
        {},
        {},
    ]


def test_ids_of_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static, "hash", lambda text: len(text), raising=False)
    ids = ["a", "bb", "c", "dd", "e"]
    columns: dict[str, Any] = {"image_id": ids, "categories": [[]] * 5, "path": [None] * 5}
    gallery = Gallery(pa.table(columns | {"attributes": [[]] * 5}, static.SCHEMA))
    assert [gallery.position(one) for one in ids] == [0, 1, 2, 3, 4]
    assert [gallery.position(one) for one in ("f", "ff", "fff")] == [None] * 3


@pytest.mark.parametrize(
    ("categories", "attributes", "expected"),
    [
        (["dress"], {}, "a c"),
        (["toptee", "dress"], {}, "a b c"),
        (["hat"], {}, ""),
        ([], {"colour": ["blue", "red"]}, "a c"),
        ([], {"colour": ["red"], "sleeves": ["long"]}, "a"),
        ([], {"colour": ["blue"], "sleeves": ["long"]}, ""),
        ([], {"sleeves": ["red"]}, ""),  # the value of another attribute
        (["shirt"], {"colour": ["blue"]}, "c"),
        ([], {"colour": []}, ""),
    ],
)
def test_filters(
    gallery: Gallery, categories: list[str], attributes: dict[str, list[str]], expected: str
) -> None:
    mask = gallery.mask(categories, attributes)
    assert mask is not None
    assert [gallery.image_id(row) for row in np.flatnonzero(mask).tolist()] == expected.split()


def test_no_filter_is_no_mask_and_the_same_filter_is_the_same_mask(gallery: Gallery) -> None:
    assert gallery.mask() is None
    first = gallery.mask(["dress", "shirt"], {"colour": ["red", "blue"]})
    assert gallery.mask(["shirt", "dress", "shirt"], {"colour": ["blue", "red"]}) is first


def test_counts_of_categories_and_attributes(gallery: Gallery) -> None:
    assert gallery.category_counts() == {"dress": 2, "shirt": 2, "toptee": 1}
    assert gallery.attribute_counts() == {"colour": {"red": 1, "blue": 1}, "sleeves": {"long": 1}}
