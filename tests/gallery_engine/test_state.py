"""Both kinds of gallery, FAISS in the process and Milvus, answer like a plain loop over images."""

from __future__ import annotations

from collections import Counter
from typing import Any, Protocol

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from raycd import bundle
from raycd.config import IndexConfig
from raycd.filters import Condition
from raycd.gallery import conditions
from raycd.gallery.conditions import Wanted
from raycd.gallery.live import Live
from raycd.gallery.records import Changes, Delete, Put, Row
from raycd.gallery.state import Page, State
from raycd.gallery.static import Gallery
from raycd.gallery_db import GalleryDatabase, listing
from raycd.gallery_engine import expressions
from raycd.gallery_engine.address import Address
from raycd.gallery_engine.collection import Collection
from raycd.gallery_engine.view import EngineView, GalleryFacts
from raycd.index import Index

DIM = 8
HOSTILE = [
    "a'b",
    'a"b',
    "a\\",
    "\\'",
    '") or version > 0 or array_contains(tags, "',
    "%_*",
    "naïve",
    "服",
    "a\nb\tc",
    "$meta",
    "{x}",
    "نص",
    "😀",
]
VALUES = ["red", "blue", "10", "-3", "7.5", "1e3", "1e999", "nan", "", " 2", *HOSTILE]
NAMES = ["colour", "price", *HOSTILE[:6]]


class Kept(Protocol):
    """A gallery that changes."""

    def apply(self, changes: Changes) -> None:
        """Make changes."""

    @property
    def view(self) -> State:
        """Return the newest state."""


class Engine:
    """A collection, and the database that its lists come from."""

    def __init__(self, collection: Collection, gallery_db: GalleryDatabase) -> None:
        self._collection, self._gallery_db = collection, gallery_db
        if collection.marker() is not None:
            collection.drop()
        collection.make()
        self._marker = collection.mark(0, 0)

    def apply(self, changes: Changes) -> None:
        done = [
            Delete(row.image_id)
            if row.feature is None
            else Put(row.image_id, row.feature, row.categories, row.attributes, row.path)
            for row in changes.rows
        ]
        self._gallery_db.write(done, "encoder")
        self._collection.put([row for row in changes.rows if row.feature is not None])
        self._collection.delete([row.image_id for row in changes.rows if row.feature is None])
        self._marker = self._collection.mark(changes.version, 0)

    @property
    def view(self) -> EngineView:
        def page(*arguments: Any, **options: Any) -> Page:
            return listing.page(self._gallery_db, *arguments, **options)

        none = GalleryFacts.none(DIM).moments
        view = EngineView(self._collection, self._marker, 0, GalleryFacts({}, {}, none), page)
        size = view.collection.count(expressions.ALL, written=self._marker.written)
        view = EngineView(self._collection, self._marker, size, GalleryFacts({}, {}, none), page)
        facts = GalleryFacts(
            listing.category_counts(self._gallery_db),
            listing.attribute_counts(self._gallery_db),
            view.sampled_moments(),
        )
        return EngineView(self._collection, self._marker, size, facts, page)


@pytest.fixture(params=["faiss", "milvus"])
def kept(request: pytest.FixtureRequest) -> Kept:
    """Return a gallery without images."""
    if request.param == "faiss":
        none_GD = np.empty((0, DIM), np.float32)
        table = bundle.gallery_table([], [], [], none_GD, "encoder", attributes=[])
        index = Index.build(none_GD, IndexConfig())
        return Live(index, Gallery(table), 0, flat_up_to=20_000)
    address = Address.parse(request.getfixturevalue("milvus").url)
    gallery_db = request.getfixturevalue("gallery_db")
    return Engine(Collection(address, "raycd_suite", DIM), gallery_db)


def row(number: int, version: int, attributes: dict[str, str], category: str = "dress") -> Row:
    feature = np.random.default_rng(version).normal(size=DIM).astype(np.float32)
    return Row(f"image-{number}", version, False, (category,), attributes, f"{number}.jpg", feature)


def gone(number: int, version: int) -> Row:
    return Row(f"image-{number}", version, True, (), {}, None, None)


def units(rows: list[Row]) -> NDArray[np.float32]:
    features_GD = np.array([row.feature for row in rows], np.float32).reshape(len(rows), DIM)
    unit_GD: NDArray[np.float32] = features_GD / np.linalg.norm(features_GD, axis=1, keepdims=True)
    return unit_GD


def check(
    view: State,
    there: list[Row],
    k: int,
    categories: list[str],
    wanted: Wanted,
    among: list[str],
) -> None:
    """Compare a search, and counts, with a loop over the images that are there."""
    right = [
        row
        for row in sorted(there, key=lambda row: row.version)
        if (not categories or set(categories) & set(row.categories))
        and (not among or row.image_id in among)
        and all(
            conditions.holds(condition, row.attributes.get(name))
            for name, condition in conditions.of(wanted)
        )
    ]
    allowed = view.allowed(categories, wanted, among)
    assert view.count(allowed) == len(right)
    query_BD = np.random.default_rng(k).normal(size=(2, DIM)).astype(np.float32)
    query_BD /= np.linalg.norm(query_BD, axis=1, keepdims=True)
    scores, positions, images = view.nearest(query_BD, k, allowed=allowed)
    for query_D, score, position in zip(query_BD, scores, positions, strict=True):
        cosines = units(right) @ query_D
        best = np.argsort(-cosines, kind="stable")[:k]
        some = position[position >= 0]
        assert [images.image_id(one) for one in some.tolist()] == [right[i].image_id for i in best]
        np.testing.assert_allclose(score[: len(best)], cosines[best], atol=1e-6)
        assert (score[len(best) :] == -np.inf).all()
        for one, i in zip(some.tolist(), best.tolist(), strict=True):
            assert images.category(one) == right[i].categories[0]
            assert images.attributes(one) == right[i].attributes
            assert images.position(right[i].image_id) == one
        np.testing.assert_allclose(images.vectors(some), units(right)[best], atol=1e-6)


def test_after_changes_it_has_what_is_there_and_nothing_else(kept: Kept) -> None:
    check(kept.view, [], 3, [], {}, [])
    first = [row(i, i + 1, {"colour": "red" if i % 2 else "blue"}) for i in range(20)]
    kept.apply(Changes(20, first))
    check(kept.view, first, 5, [], {}, [])
    check(kept.view, first, 500, [], {}, [])
    again = row(3, 21, {"price": "5"}, "shirt")
    kept.apply(Changes(23, [again, gone(4, 22), gone(7, 23)]))
    there = [one for one in first if one.image_id not in ("image-3", "image-4", "image-7")]
    check(kept.view, [*there, again], 50, [], {}, [])
    back = row(4, 24, {"colour": "red"})
    kept.apply(Changes(24, [back]))
    there += [again, back]
    view = kept.view
    assert (view.version, len(view)) == (24, 19)
    check(view, there, 50, ["shirt"], {}, [])
    check(view, there, 50, [], {"colour": ["red"]}, ["image-4", "image-5", "image-6", "nobody"])
    check(view, there, 50, ["nobody's"], {}, [])
    check(view, there, 50, [], {"colour": []}, [])
    assert view.missing(["image-4", "image-7", "nobody"]) == ["image-7", "nobody"]


def test_an_image_is_found_by_its_id_with_all_that_is_known_of_it(kept: Kept) -> None:
    odd = Row("a'\"\\/ñ\n", 1, False, ("x", "y"), {"n": "1"}, None, np.full(DIM, 3, np.float32))
    kept.apply(Changes(2, [odd, row(1, 2, {})]))
    view = kept.view
    found = view.find(odd.image_id)
    assert found is not None
    assert (found.image_id, found.category, found.path) == (odd.image_id, "x", None)
    assert found.attributes == {"n": "1"}
    assert found.feature_D == pytest.approx(np.full(DIM, 3), rel=1e-6)
    assert view.find("nobody") is None
    assert view.count(None, without={odd.image_id}) == 1
    assert view.count(view.allowed(["dress"]), without={odd.image_id}) == 1
    assert view.count(view.allowed(["y"]), without={odd.image_id}) == 0


def test_images_of_one_score_come_by_their_versions(kept: Kept) -> None:
    alike = np.ones(DIM, np.float32)
    rows = [Row(f"image-{i}", i + 1, False, ("a",), {}, None, alike) for i in (4, 1, 3, 0, 2)]
    kept.apply(Changes(5, sorted(rows, key=lambda row: row.version)))
    query_1D = (alike / np.linalg.norm(alike))[None]
    _, positions, images = kept.view.nearest(query_1D, 5)
    assert [images.image_id(one) for one in positions[0].tolist()] == [
        f"image-{i}" for i in range(5)
    ]


def test_it_counts_categories_values_and_moments(kept: Kept) -> None:
    rows = [row(i, i + 1, {"size": str(i % 3), "mark": "x'y"}, "ab"[i % 2]) for i in range(30)]
    kept.apply(Changes(30, rows))
    view = kept.view
    assert dict(view.category_counts) == Counter({"a": 15, "b": 15})
    assert view.attribute_counts == {"mark": {"x'y": 30}, "size": {"0": 10, "1": 10, "2": 10}}
    assert (view.has_category("a"), view.has_category("c")) == (True, False)
    assert (view.has_attribute("size"), view.has_attribute("other")) == (True, False)
    assert (view.has_attribute("mark", "x'y"), view.has_attribute("mark", "x")) == (True, False)
    assert (view.has_number("size"), view.has_number("mark")) == (True, False)
    np.testing.assert_allclose(view.moments.mean_D, units(rows).mean(axis=0), atol=1e-6)
    covariance_DD = np.cov(units(rows).T, bias=True)
    np.testing.assert_allclose(view.moments.covariance_DD, covariance_DD, atol=1e-6)


def test_a_page_lists_images_by_their_versions(kept: Kept) -> None:
    rows = [row(i, i + 1, {"n'": str(i % 2)}, "ab"[i % 2]) for i in range(10)]
    kept.apply(Changes(10, rows))
    kept.apply(Changes(11, [gone(4, 11)]))
    view = kept.view

    def page(categories: list[str], wanted: dict[str, list[str]], **options: Any) -> Any:
        images, total = view.page(categories, wanted, **options)
        return [one.image_id.removeprefix("image-") for one in images], total

    assert page([], {}, offset=1, limit=3, newest=False) == (["1", "2", "3"], 9)
    assert page([], {}, offset=0, limit=2, newest=True) == (["9", "8"], 9)
    assert page(["a", "c"], {}, offset=2, limit=9, newest=False) == (["6", "8"], 4)
    assert page(["b"], {"n'": ["1", "7"]}, offset=0, limit=1, newest=True) == (["9"], 5)
    assert page([], {"n'": ["0"], "m": ["0"]}, offset=0, limit=1, newest=True) == ([], 0)


@st.composite
def filters(draw: st.DrawFn) -> dict[str, Any]:
    """Draw conditions as a request has them."""
    words = st.sampled_from([value for value in VALUES if value.strip()])
    bounds = st.sampled_from([-3, 0, 7.5, 10, 1000.0, 1e-7, -1e22])
    condition = st.fixed_dictionaries(
        {},
        optional={
            "in": st.lists(words),
            "not": st.lists(words, min_size=1),
            "gt": bounds,
            "gte": bounds,
            "lt": bounds,
            "lte": bounds,
        },
    ).filter(bool)
    found = draw(
        st.dictionaries(
            st.sampled_from(NAMES), st.lists(words) | condition.map(Condition.model_validate)
        )
    )
    return dict(found)


def test_any_filter_equals_a_loop_whatever_is_in_its_texts(kept: Kept) -> None:
    rng = np.random.default_rng(0)
    there = [
        row(
            i,
            i + 1,
            {str(name): str(rng.choice(VALUES)) for name in NAMES if rng.random() < 0.5},
            str(rng.choice([*HOSTILE, "dress"])),
        )
        for i in range(40)
    ]
    kept.apply(Changes(40, there))
    view = kept.view

    @settings(max_examples=30, deadline=None)
    @given(filters(), st.lists(st.sampled_from([*HOSTILE, "dress"]), max_size=2))
    def holds(wanted: dict[str, Any], categories: list[str]) -> None:
        check(view, there, 50, categories, wanted, [])

    holds()
