"""Filters of attributes: whatever is asked of a gallery that has changed equals a plain loop."""

from __future__ import annotations

import operator
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycd import bundle
from raycd.api import SearchRequest
from raycd.config import IndexConfig
from raycd.filters import Condition
from raycd.gallery import static
from raycd.gallery.conditions import is_number, number, ranges
from raycd.gallery.live import Live
from raycd.gallery.records import Changes, Row
from raycd.gallery.static import Gallery
from raycd.index import Index

NAMES = ["colour", "price", "size"]
VALUES = ["red", "blue", "10", "10.0", "-3", "7.5", "1e3", "nan", "1_0", "", "inf", " 2", "٣"]
IMAGES = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(VALUES))
SIGNS = {"gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le}


@st.composite
def conditions(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a condition as a request has it."""
    words = draw(st.sets(st.sampled_from(["in", "not", *SIGNS]), min_size=1))
    names = st.lists(st.sampled_from([value for value in VALUES if value.strip()]))
    some = {"in": names, "not": names.filter(bool)}
    bounds = st.sampled_from([-3, 0, 7.5, 10, 1000.0])
    return {word: draw(some.get(word, bounds)) for word in sorted(words)}


def fits(condition: Any, value: str | None) -> bool:
    """Return what a condition says of a value, word by word."""
    if isinstance(condition, list):
        return value in condition
    said = []
    for word, than in condition.items():
        if word in ("in", "not"):
            said.append((value in than) == (word == "in"))
        else:
            known = {"10": 10.0, "10.0": 10.0, "-3": -3.0, "7.5": 7.5, "1e3": 1000.0}.get(
                value or ""
            )
            said.append(known is not None and SIGNS[word](known, than))
    return all(said)


def row(number: int, attributes: dict[str, str], *, deleted: bool = False) -> Row:
    feature = None if deleted else np.ones(2, np.float32)
    return Row(f"image-{number}", 1, deleted, (), attributes, None, feature)


@given(
    indexed=st.lists(IMAGES, max_size=12),
    added=st.lists(IMAGES, max_size=6),
    removed=st.sets(st.integers(0, 17)),
    wanted=st.dictionaries(
        st.sampled_from([*NAMES, "unknown"]),
        st.lists(st.sampled_from([value for value in VALUES if value.strip()])) | conditions(),
        min_size=1,
    ),
)
def test_any_filter_of_any_gallery_finds_what_a_loop_finds(
    indexed: list[dict[str, str]],
    added: list[dict[str, str]],
    removed: set[int],
    wanted: dict[str, Any],
) -> None:
    features_GD = np.ones((len(indexed), 2), np.float32)
    table = bundle.gallery_table(
        [f"image-{i}" for i in range(len(indexed))],
        [[]] * len(indexed),
        [None] * len(indexed),
        features_GD,
        "encoder",
        attributes=indexed,
    )
    live = Live(Index.build(features_GD, IndexConfig()), Gallery(table), 1, flat_up_to=100)
    images = [*indexed, *added]
    live.apply(Changes(2, [row(len(indexed) + i, one) for i, one in enumerate(added)]))
    gone = sorted(number for number in removed if number < len(images))
    live.apply(Changes(3, [row(number, {}, deleted=True) for number in gone]))
    asked = SearchRequest.model_validate({"text": "x", "attributes": wanted})
    mask = live.view.mask((), asked.attributes)
    assert mask is not None
    stripped = {
        name: [value.strip() for value in one]
        if isinstance(one, list)
        else {
            word: [value.strip() for value in part] if isinstance(part, list) else part
            for word, part in one.items()
        }
        for name, one in wanted.items()
    }
    expected = [
        number not in removed
        and all(fits(one, attributes.get(name)) for name, one in stripped.items())
        for number, attributes in enumerate(images)
    ]
    assert mask.tolist() == expected
    again = SearchRequest.model_validate({"text": "y", "attributes": wanted})
    assert live.view.mask((), again.attributes) is mask


@pytest.mark.parametrize(
    ("text", "expected"),
    [("10", 10), ("-0.5", -0.5), (".5", 0.5), ("3.", 3), ("+2e-1", 0.2)],
)
def test_numbers_are_those_of_decimal_notation(text: str, expected: float) -> None:
    assert number(text) == expected


@pytest.mark.parametrize("text", ["", "nan", "inf", "-inf", "1_0", " 1", "0x1", "1,5", "٣", "."])
def test_other_values_are_no_numbers(text: str) -> None:
    assert np.isnan(number(text))


def test_a_range_is_that_of_the_values_that_are_finite_numbers() -> None:
    values = {"price": ["7.5", "1e3", "sold", "1e999", "-3"], "colour": ["red", "inf"], "size": []}
    assert ranges(values) == {"price": (-3.0, 1000.0)}


def test_a_long_value_that_is_almost_a_number_is_read_once() -> None:
    began = time.thread_time()
    assert not any(map(is_number, ["1" * 10_000 + "x", "0." + "1" * 10_000 + "e"]))
    assert time.thread_time() - began < 0.5


def test_the_attributes_that_have_numbers_are_known_of_indexed_and_of_added_images() -> None:
    indexed = [{"price": "cheap", "size": "38"}, {"price": "dear"}]
    features_GD = np.ones((2, 2), np.float32)
    table = bundle.gallery_table(
        ["image-0", "image-1"], [[]] * 2, [None] * 2, features_GD, "encoder", attributes=indexed
    )
    live = Live(Index.build(features_GD, IndexConfig()), Gallery(table), 1, flat_up_to=100)

    def numeric() -> list[str]:
        return [name for name in ("size", "price", "colour") if live.view.has_number(name)]

    assert numeric() == ["size"]
    live.apply(Changes(2, [row(2, {"price": "12", "colour": "red"})]))
    assert numeric() == ["size", "price"]
    live.apply(Changes(3, [row(2, {}, deleted=True)]))
    assert numeric() == ["size"]


def test_the_masks_that_are_kept_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static, "KEPT_MIB", 20 / 2**20)  # two masks of 8 images
    features_GD = np.ones((8, 2), np.float32)
    table = bundle.gallery_table(
        [str(i) for i in range(8)], [[str(i)] for i in range(8)], [None] * 8, features_GD, "encoder"
    )
    gallery = Gallery(table)
    first, second, third = (gallery.mask([name]) for name in "012")
    assert gallery.mask(["1"]) is second
    assert gallery.mask(["2"]) is third
    again = gallery.mask(["0"])
    assert again is not first
    np.testing.assert_array_equal(again, first)


def test_a_condition_is_sent_as_it_is_written() -> None:
    asked = SearchRequest(text="x", attributes={"price": Condition(gte=1, not_=("a",))})
    sent = asked.model_dump(mode="json", exclude_unset=True, by_alias=True)
    assert sent["attributes"] == {"price": {"not": ["a"], "gte": 1.0}}
    assert SearchRequest.model_validate(sent) == asked
