"""A live gallery: after any changes a view answers like an index of the same images."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from raycd import bundle
from raycd.config import IndexConfig
from raycd.config.fields import IndexKind
from raycd.errors import GalleryError
from raycd.gallery import added, recent
from raycd.gallery import live as live_module
from raycd.gallery.live import REBUILD_FROM, Live, contents
from raycd.gallery.records import Changes, Row
from raycd.gallery.static import Gallery
from raycd.gallery.view import View
from raycd.index import Index
from raycd.index.choice import KINDS

DIM = 8
COLOURS = ["red", "green", "blue"]


def feature(rng: np.random.Generator) -> NDArray[np.float32]:
    """Return features near each other, as those of similar products."""
    near: NDArray[np.float32] = (rng.normal(size=DIM) + 3).astype(np.float32)
    return near


def image(image_id: str, version: int, rng: np.random.Generator) -> Row:
    colour, category = rng.choice(COLOURS), rng.choice(["dress", "shirt"])
    return Row(
        image_id,
        version,
        False,
        (str(category),),
        {"colour": str(colour)},
        f"{version}.jpg",
        feature(rng),
    )


def gone(image_id: str, version: int) -> Row:
    return Row(image_id, version, True, (), {}, None, None)


def started(rows: list[Row], settings: IndexConfig | None = None) -> Live:
    """Return a gallery with these images in its index."""
    features_GD = np.array([row.feature for row in rows], np.float32).reshape(len(rows), DIM)
    table = bundle.gallery_table(
        [row.image_id for row in rows],
        [list(row.categories) for row in rows],
        [row.path for row in rows],
        features_GD,
        "encoder",
        attributes=[row.attributes for row in rows],
    )
    index = Index.build(features_GD, settings or IndexConfig())
    return Live(index, Gallery(table), version=len(rows), flat_up_to=20_000)


def check(view: View, there: dict[str, Row], rng: np.random.Generator) -> None:
    """Check that the view has exactly these images, in the order of their versions."""
    rows = sorted(there.values(), key=lambda row: row.version)
    assert len(view) == len(rows)
    positions_G = np.flatnonzero(view.live)
    assert [view.image_id(position) for position in positions_G.tolist()] == [
        row.image_id for row in rows
    ]
    for position, row in zip(positions_G.tolist(), rows, strict=True):
        assert view.position(row.image_id) == position
        assert (view.category(position), view.attributes(position)) == (
            row.categories[0],
            row.attributes,
        )
        assert view.path(position) == row.path
    assert view.category_counts == Counter(category for row in rows for category in row.categories)
    colours = Counter(row.attributes["colour"] for row in rows)
    assert view.attribute_counts == ({"colour": dict(colours)} if colours else {})
    if not rows:
        return
    features_GD = np.array([row.feature for row in rows])
    np.testing.assert_allclose(view.features(positions_G), features_GD, rtol=1e-5)
    unit_GD = features_GD / np.linalg.norm(features_GD, axis=1, keepdims=True)
    np.testing.assert_allclose(view.moments.mean_D, unit_GD.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(view.moments.covariance_DD, np.cov(unit_GD.T, bias=True), atol=1e-5)
    query_BD = rng.normal(size=(3, DIM)).astype(np.float32)
    query_BD /= np.linalg.norm(query_BD, axis=1, keepdims=True)
    for wanted in ([], ["red"], ["red", "blue"], ["black"]):
        mask = view.mask((), {"colour": wanted} if wanted else {})
        scores, positions = view.search(query_BD, 5, allowed=mask)
        chosen = [
            i for i, row in enumerate(rows) if not wanted or row.attributes["colour"] in wanted
        ]
        for query_D, score, position in zip(query_BD, scores, positions, strict=True):
            best = sorted(chosen, key=lambda i: -float(unit_GD[i] @ query_D))[:5]
            found = [view.image_id(p) for p in position.tolist() if p >= 0]
            assert found == [rows[i].image_id for i in best]
            np.testing.assert_allclose(score[: len(best)], unit_GD[best] @ query_D, atol=1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_any_changes_give_what_is_there_and_nothing_else(seed: int) -> None:
    rng = np.random.default_rng(seed)
    there = {
        row.image_id: row for row in [image(f"image-{i}", i + 1, rng) for i in range(seed * 3)]
    }
    live, version = started(list(there.values())), len(there)
    for _ in range(12):
        changed: dict[str, Row] = {}
        for _ in range(rng.integers(0, 12)):
            version += 1
            image_id = f"image-{rng.integers(0, 30)}"
            row = image(image_id, version, rng) if rng.random() < 0.6 else gone(image_id, version)
            changed.pop(image_id, None)
            changed[image_id] = row
            there.pop(image_id, None)
            if not row.deleted:
                there[image_id] = row
        live.apply(Changes(version, list(changed.values())))
        assert live.view.version == version
        check(live.view, there, rng)
    table, features_GD = contents(live.view)
    again = Live(
        Index.build(features_GD, IndexConfig()), Gallery(table), version, flat_up_to=20_000
    )
    check(again.view, there, rng)


def test_a_view_stays_what_it_was() -> None:
    rng = np.random.default_rng(0)
    rows = [image(f"image-{i}", i + 1, rng) for i in range(5)]
    live = started(rows)
    old, there = live.view, {row.image_id: row for row in rows}
    live.apply(Changes(7, [image("new", 6, rng), gone("image-2", 7)]))
    newer = live.view
    live.apply(Changes(2000, [image(f"more-{i}", 8 + i, rng) for i in range(1900)]))
    check(old, there, rng)
    assert len(newer) == 5
    assert newer.position("new") == 5
    assert newer.position("more-1") is None
    assert old.position("new") is None


@pytest.mark.parametrize("kind", KINDS)
def test_what_has_gone_is_found_by_no_kind_of_index(kind: IndexKind) -> None:
    rng = np.random.default_rng(1)
    rows = [image(f"image-{i}", i + 1, rng) for i in range(400)]
    live = started(rows, IndexConfig(kind=kind, recall=0.99))
    first = rows[7].feature
    assert first is not None
    query_BD = (first / np.linalg.norm(first))[None]
    assert live.view.search(query_BD, 1)[1].tolist() == [[7]]
    live.apply(Changes(401, [gone("image-7", 401)]))
    assert 7 not in live.view.search(query_BD, 400)[1]
    live.apply(Changes(402, [Row("image-7", 402, False, (), {}, None, first)]))
    assert live.view.search(query_BD, 1)[1].tolist() == [[400]]
    assert (live.view.search(query_BD, 400)[1] >= 0).all(), "all that is there"


def test_an_image_without_a_feature_is_not_there_until_it_has_one() -> None:
    rng = np.random.default_rng(2)
    live = started([image("a", 1, rng)])
    live.apply(Changes(2, [Row("a", 2, False, (), {}, None, None)]))
    assert (len(live.view), live.view.position("a"), live.without) == (0, None, {"a"})
    live.apply(Changes(3, [image("a", 3, rng)]))
    assert (len(live.view), live.without) == (1, set())


def test_features_of_another_size_are_refused_and_change_nothing() -> None:
    rng = np.random.default_rng(3)
    live = started([image("a", 1, rng)])
    before = live.view
    with pytest.raises(GalleryError, match="another size"):
        live.apply(Changes(2, [Row("b", 2, False, (), {}, None, np.ones(3, np.float32))]))
    assert live.view is before


def test_many_changes_ask_for_a_new_index() -> None:
    rng = np.random.default_rng(4)
    live = started([image(f"image-{i}", i + 1, rng) for i in range(10)])
    live.apply(Changes(REBUILD_FROM, [image(f"new-{i}", i, rng) for i in range(REBUILD_FROM)]))
    assert not live.needs_rebuild
    live.apply(Changes(REBUILD_FROM + 1, [image("one more", REBUILD_FROM + 1, rng)]))
    assert live.needs_rebuild


def test_a_bound_of_the_memory_asks_for_a_new_index_sooner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live_module, "REBUILD_SHARE", 2000)
    rng = np.random.default_rng(4)
    known = started([image(f"image-{i}", i, rng) for i in range(8)]).view
    quarter = 2**18 // (4 * DIM)  # images whose features are a quarter of a MiB
    new = Changes(9, [image(f"new-{i}", 9, rng) for i in range(quarter + 1)])
    for memory_mib, needs_rebuild in ((0, False), (1, True), (2, False)):
        live = Live(known.index, known.gallery, 8, flat_up_to=10**6, memory_mib=memory_mib)
        live.apply(new)
        assert live.needs_rebuild is needs_rebuild


def test_additions_keep_their_features_once() -> None:
    rng = np.random.default_rng(4)
    live = started([image("a", 1, rng)])
    live.apply(Changes(2, [image("b", 2, rng)]))
    assert [row.feature for row in live.view.additions.rows] == [None]
    assert live.recent.unit_AD.shape == (1, DIM)


def test_the_contents_of_a_view_are_read_in_any_parts() -> None:
    rng = np.random.default_rng(6)
    rows = [image(f"image-{i}", i + 1, rng) for i in range(20)]
    live = started(rows[:15])
    live.apply(Changes(21, [*rows[15:], gone("image-3", 21)]))
    table, kept = contents(live.view)
    expected = np.array([row.feature for row in rows if row.image_id != "image-3"])
    assert kept.shape == expected.shape
    np.testing.assert_allclose(kept[:], expected, rtol=1e-5)
    np.testing.assert_allclose(kept[12:16], expected[12:16], rtol=1e-5)
    np.testing.assert_allclose(kept[np.array([18, 0, 2])], expected[[18, 0, 2]], rtol=1e-5)
    assert table["image_id"].to_pylist() == [r.image_id for r in rows if r.image_id != "image-3"]


@pytest.mark.parametrize(("kind", "needs_rebuild"), [("ivf", False), ("flat", True)])
def test_images_that_will_be_in_lists_soon_ask_for_no_new_index(
    kind: str, needs_rebuild: bool
) -> None:
    rng = np.random.default_rng(5)
    count = recent.MAX_UNINDEXED + 1
    live = started(
        [image(f"image-{i}", i, rng) for i in range(100)],
        IndexConfig.model_validate({"kind": kind}),
    )
    live = Live(live.view.index, live.view.gallery, 0, flat_up_to=100)
    live.apply(Changes(1, [image(f"new-{i}", 1, rng) for i in range(count)]))
    assert live.needs_rebuild is needs_rebuild
    live.take_lists(live.recent.put_into_lists())
    assert live.recent.listed == (0 if kind == "flat" else count)
    assert live.needs_rebuild is needs_rebuild


def test_a_view_has_no_version_before_it_has_all_that_was_put_up_to_it() -> None:
    rng = np.random.default_rng(0)
    live = started([image("first", 1, rng)])
    live.apply(Changes(3, [image("a", 2, rng), image("b", 3, rng)], more=True))
    assert (live.view.version, live.seen) == (3, 3)
    # What was put at 4 was put again at 7: until then it is absent
    live.apply(Changes(6, [image("c", 5, rng), image("d", 6, rng)], more=True))
    assert (live.view.version, live.seen, len(live.view)) == (3, 6, 5)
    live.apply(Changes(8, [image("e", 7, rng), image("f", 8, rng)], more=True))
    assert (live.view.version, live.seen) == (3, 8)
    live.apply(Changes(8, []))
    assert (live.view.version, len(live.view)) == (8, 7)


def test_added_images_are_asked_once_by_a_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    live = started([image(str(number), 0, rng) for number in range(4)])
    asked: list[str] = []
    real = added._fits

    def counted(row: Row, *wanted: Any) -> bool:
        asked.append(row.image_id)
        return real(row, *wanted)

    monkeypatch.setattr(added, "_fits", counted)
    live.apply(Changes(2, [image("a", 1, rng), image("b", 2, rng)]))
    before, first = live.view, live.view.mask(["dress"])
    live.apply(Changes(4, [image("c", 3, rng), gone("a", 4)]))
    second = live.view.mask(["dress"])
    assert asked == ["a", "b", "c"]
    assert first is not None
    assert second is not None
    for view, mask in ((before, first), (live.view, second)):
        right = [bool(view.live[at]) and view.category(at) == "dress" for at in range(view.size)]
        assert mask.tolist() == right


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_of_any_kind_can_be_made_of_nothing(kind: IndexKind) -> None:
    settings = IndexConfig(kind=kind)
    assert Index.build(np.empty((0, DIM), np.float32), settings).size == 0


def test_an_image_of_a_tiny_feature_is_found_and_stops_no_rebuild() -> None:
    rng = np.random.default_rng(0)
    live = started([image(f"i{n}", n + 1, rng) for n in range(20)])
    tiny = Row("tiny", 21, False, (), {}, None, feature(rng) * np.float32(1e-18))
    live.apply(Changes(21, [tiny]))
    assert tiny.feature is not None
    unit_D = tiny.feature / np.linalg.norm(tiny.feature)
    _, positions = live.view.search(unit_D[None], 1)
    assert live.view.image_id(int(positions[0, 0])) == "tiny"
    Index.build(live.view.features(np.flatnonzero(live.view.live)), IndexConfig())


def test_copies_that_were_added_are_on_no_two_pages() -> None:
    rng = np.random.default_rng(0)
    live = started([image("i0", 1, rng)])
    same = image("same", 2, rng)
    copies = [replace(same, image_id=f"copy-{n}", version=n + 2) for n in range(60)]
    live.apply(Changes(61, copies))
    assert same.feature is not None
    query_BD = (same.feature / np.linalg.norm(same.feature))[None]
    pages = [live.view.search(query_BD, k)[1][0, k - 10 :].tolist() for k in (10, 20, 30)]
    assert pages == [list(range(first, first + 10)) for first in (1, 11, 21)]


def test_answers_about_added_images_have_a_bound() -> None:
    rng = np.random.default_rng(0)
    live = started([image("i0", 1, rng)])
    live.apply(Changes(2, [image("i1", 2, rng)]))
    for number in range(2 * 4096):
        assert not live.view.has_attribute("colour", f"no colour {number}")
    assert len(live.view.additions.rows._masks) <= 4096


def test_categories_are_known_of_indexed_and_of_added_images() -> None:
    rng = np.random.default_rng(0)
    live = started([replace(image("i0", 1, rng), categories=("dress",))])
    live.apply(Changes(2, [replace(image("i1", 2, rng), categories=("hat",))]))
    known = [live.view.has_category(name) for name in ("dress", "hat", "shoe")]
    assert known == [True, True, False]
    live.apply(Changes(4, [gone("i0", 3), gone("i1", 4)]))
    assert not any(live.view.has_category(name) for name in ("dress", "hat"))
