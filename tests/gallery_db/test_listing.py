"""Lists and counts by SQL, on both databases."""

from __future__ import annotations

import pytest

from raycd.filters import Condition
from raycd.gallery import conditions
from raycd.gallery.records import Delete, Put
from raycd.gallery.state import Image
from raycd.gallery_db import GalleryDatabase, listing
from tests.gallery_db.values import CLIP, feature

ODD = 'it\'s "odd" \\ größe'


@pytest.fixture
def listed(gallery_db: GalleryDatabase) -> GalleryDatabase:
    """Return a database of six images, one of which is deleted."""
    changes = [
        Put(
            f"image-{i}", feature(i), ("dress", ODD) if i % 2 else (), {ODD: str(i % 3)}, f"{i}.jpg"
        )
        for i in range(6)
    ]
    gallery_db.write([*changes, Delete("image-3")], CLIP)
    return gallery_db


def test_pages_are_filtered_and_in_the_order_of_the_versions(listed: GalleryDatabase) -> None:
    images, total = listing.page(listed, [], {}, offset=1, limit=2, newest=True)
    assert [one.image_id for one in images] == ["image-4", "image-2"]
    assert total == 5
    images, total = listing.page(
        listed, [ODD, "none"], {ODD: ["1", "2"]}, offset=0, limit=9, newest=False
    )
    assert images == [
        Image("image-1", "dress", {ODD: "1"}, "1.jpg"),
        Image("image-5", "dress", {ODD: "2"}, "5.jpg"),
    ]
    assert total == 2
    assert listing.page(listed, [], {}, offset=2**53 - 1, limit=200, newest=True) == ([], 5)
    for categories, attributes in ((["none"], {}), ([], {"none": ["1"]}), ([], {ODD: []})):
        found = listing.page(listed, categories, attributes, offset=0, limit=9, newest=False)
        assert found == ([], 0)


VALUES = [
    "1",
    "-1.5",
    "+.5e1",
    "10.",
    "1e300",
    "1e400",
    "-1e400",
    "1e-400",
    "1x",
    "",
    "one",
    "\u0664",
    "1\n",
    "nan",
    None,
]
CONDITIONS = [
    {"in_": ("1", "one")},
    {"in_": ()},
    {"not_": ("1", "one")},
    {"not_": ("1",), "in_": ("1", "10.")},
    {"gt": 1},
    {"gte": 1, "lt": 10},
    {"lte": -1.5},
    {"lte": 5.0, "not_": ("1",)},
    {"gt": 1e299},
]


@pytest.mark.parametrize("asked", CONDITIONS)
def test_a_page_takes_the_conditions_of_a_search(
    asked: dict[str, object], gallery_db: GalleryDatabase
) -> None:
    condition = Condition.model_validate(asked)
    attributes = [{} if value is None else {ODD: value, "b": "2"} for value in VALUES]
    gallery_db.write(
        [Put(str(i), feature(i), (), own, None) for i, own in enumerate(attributes)], CLIP
    )
    images, total = listing.page(
        gallery_db,
        [],
        {ODD: condition, "b": Condition(not_=("1",))},
        offset=0,
        limit=99,
        newest=False,
    )
    right = [str(i) for i, own in enumerate(VALUES) if conditions.holds(condition, own)]
    assert [one.image_id for one in images] == right
    assert total == len(right)


def test_counts_are_of_what_is_there_the_largest_first(
    listed: GalleryDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert listing.category_counts(listed) == {"dress": 2, ODD: 2}
    assert listing.attribute_counts(listed) == {ODD: {"1": 2, "2": 2, "0": 1}}
    monkeypatch.setattr(listing, "VALUES", 1)
    assert listing.category_counts(listed) == {"dress": 2}
    assert listing.attribute_counts(listed) == {ODD: {"1": 2}}


def test_a_text_with_the_character_nul_hides_no_other_image(gallery_db: GalleryDatabase) -> None:
    texts = ("\0", "a\0\0b", "\\\0", "\\u0000", "plain")
    gallery_db.write(
        [Put(str(i), feature(i), (text,), {text: text}) for i, text in enumerate(texts)], CLIP
    )
    for text in ("\\u0000", "plain"):
        found = listing.page(gallery_db, [text], {text: [text]}, offset=0, limit=9, newest=False)
        assert found.total == 1
        assert listing.category_counts(gallery_db)[text] == 1
        assert listing.attribute_counts(gallery_db)[text] == {text: 1}
    assert len(listing.category_counts(gallery_db)) == len(texts)


def test_each_database_has_a_name_of_its_own(gallery_db: GalleryDatabase, tmp_path: object) -> None:
    with GalleryDatabase.open(f"{tmp_path}/other.sqlite") as other:
        assert len(gallery_db.uid()) == len(other.uid()) == 32
        assert gallery_db.uid() == gallery_db.uid() != other.uid()
