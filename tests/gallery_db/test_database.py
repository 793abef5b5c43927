"""The gallery database on SQLite and PostgreSQL: writes, versions, and how replicas follow."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from raycd.errors import GalleryError
from raycd.gallery.records import Change, Delete, Done, Put, Row, Seed
from raycd.gallery.static import SCHEMA
from raycd.gallery_db import GalleryDatabase
from tests.gallery_db.values import CLIP, DIM, OTHER, feature, put, table


def states(rows: list[Row]) -> dict[str, float | None]:
    """Return id -> first number of its feature; None where it is deleted or has none."""
    return {row.image_id: None if row.feature is None else float(row.feature[0]) for row in rows}


def test_a_new_gallery_database_is_empty(gallery_db: GalleryDatabase) -> None:
    assert (gallery_db.version(), gallery_db.count(), gallery_db.seed(), gallery_db.encoders()) == (
        0,
        0,
        None,
        {},
    )
    assert gallery_db.changes(0, CLIP).rows == []
    found = gallery_db.load(CLIP)
    assert (found.version, len(found.table), found.features_GD.shape, found.unencoded) == (
        0,
        0,
        (0, 0),
        [],
    )


def test_every_change_has_the_next_version_and_tells_what_was_there(
    gallery_db: GalleryDatabase,
) -> None:
    assert gallery_db.write([put("a", path="pictures:1"), put("b")], CLIP) == [
        Done(1, False, None),
        Done(2, False, None),
    ]
    done = gallery_db.write(
        [put("a", 5), Delete("b"), Delete("b"), Delete("nobody"), put("b", 6)], CLIP
    )
    assert done == [
        Done(3, True, "pictures:1"),
        Done(4, True, None),
        Done(4, False, None),
        Done(4, False, None),
        Done(5, False, None),
    ]
    assert (gallery_db.version(), gallery_db.count()) == (5, 2)


def test_what_was_put_is_read_as_it_was(gallery_db: GalleryDatabase) -> None:
    odd = "odd 'id'/\"\\%\u2028 größe"
    gallery_db.write([Put(odd, feature(7), ("a", "b"), {"né": "v'1"}, "s3://bucket/x y.jpg")], CLIP)
    [row] = gallery_db.changes(0, CLIP).rows
    assert (row.image_id, row.version, row.deleted) == (odd, 1, False)
    assert (row.categories, row.attributes, row.path) == (
        ("a", "b"),
        {"né": "v'1"},
        "s3://bucket/x y.jpg",
    )
    assert row.feature is not None
    assert row.feature.dtype == np.float32
    assert row.feature.tolist() == feature(7).tolist()


def test_changes_are_the_last_states_after_a_version(gallery_db: GalleryDatabase) -> None:
    gallery_db.write([put("a", 1), put("b", 2), put("c", 3)], CLIP)
    gallery_db.write([put("a", 4), Delete("b")], CLIP)
    changes = gallery_db.changes(3, CLIP)
    assert changes.version == 5
    assert states(changes.rows) == {"a": 4.0, "b": None}
    assert [row.deleted for row in changes.rows] == [False, True]
    assert states(gallery_db.changes(0, CLIP).rows) == {"c": 3.0, "a": 4.0, "b": None}
    assert gallery_db.changes(5, CLIP).rows == []


def test_a_tombstone_keeps_nothing_of_the_image(gallery_db: GalleryDatabase) -> None:
    gallery_db.write([put("a", path="pictures:1"), Delete("a")], CLIP)
    [row] = gallery_db.changes(0, CLIP).rows
    assert (row.deleted, row.categories, row.attributes, row.path, row.feature) == (
        True,
        (),
        {},
        None,
        None,
    )
    assert gallery_db.encoders() == {}


def test_it_begins_with_a_bundles_gallery_once(gallery_db: GalleryDatabase) -> None:
    assert gallery_db.begin(table(12), CLIP, "digest") == Seed("digest", 12)
    assert gallery_db.begin(table(3), OTHER, "another") == Seed("digest", 12)
    found = gallery_db.load(CLIP)
    assert (found.version, found.table.schema) == (12, SCHEMA)
    assert found.table.to_pylist()[1] == {
        "image_id": "own-1",
        "categories": ["shirt"],
        "path": "/photos/own-1.jpg",
        "attributes": [("neck", "v")],
    }
    assert found.features_GD[:, 0].tolist() == list(range(12))
    assert gallery_db.write([put("new")], CLIP) == [Done(13, False, None)]


def test_it_begins_with_the_parts_of_a_gallery_as_with_the_whole(
    gallery_db: GalleryDatabase,
) -> None:
    assert gallery_db.begin(iter(table(12).to_batches(max_chunksize=5)), CLIP, "digest") == Seed(
        "digest", 12
    )
    made: list[tuple[int, int]] = []

    def room(shape: tuple[int, int], kind: type[np.float32]) -> NDArray[np.float32]:
        made.append(shape)
        return np.empty(shape, kind)

    found = gallery_db.load(CLIP, room=room)
    assert found.features_GD[:, 0].tolist() == list(range(12))
    assert made == [found.features_GD.shape]


def test_an_empty_gallery_is_a_beginning_and_a_gallery_database_that_was_written_to_has_none(
    gallery_db: GalleryDatabase,
) -> None:
    assert gallery_db.begin(table(0), CLIP, "empty") == Seed("empty", 0)
    assert gallery_db.begin(table(3), CLIP, "digest") == Seed("empty", 0)


def test_a_gallery_database_that_was_written_to_begins_no_more(gallery_db: GalleryDatabase) -> None:
    gallery_db.write([put("a")], CLIP)
    assert gallery_db.begin(table(3), CLIP, "digest") is None
    assert gallery_db.count() == 1


def test_features_of_another_encoder_are_never_seen(gallery_db: GalleryDatabase) -> None:
    gallery_db.write([put("a", 1), put("b", 2)], CLIP)
    assert states(gallery_db.changes(0, OTHER).rows) == {"a": None, "b": None}
    found = gallery_db.load(OTHER)
    assert (len(found.table), [row.image_id for row in found.unencoded]) == (0, ["a", "b"])
    assert (
        gallery_db.add_features(
            OTHER, [("a", 1, np.ones(9, np.float32)), ("b", 2, np.zeros(9, np.float32))]
        )
        == 2
    )
    assert states(gallery_db.changes(0, OTHER).rows) == {"a": 1.0, "b": 0.0}
    assert states(gallery_db.changes(0, CLIP).rows) == {"a": 1.0, "b": 2.0}
    assert gallery_db.encoders() == {CLIP: 2, OTHER: 2}
    gallery_db.write([put("a", 3)], CLIP)  # another picture: what the other encoder saw is gone
    assert states(gallery_db.changes(0, OTHER).rows) == {"a": None, "b": 0.0}
    assert gallery_db.forget(OTHER) == 1
    assert gallery_db.encoders() == {CLIP: 2}


def test_features_are_added_to_what_is_still_there_and_lacks_them(
    gallery_db: GalleryDatabase,
) -> None:
    gallery_db.write([put("a"), put("b"), put("c"), put("d")], CLIP)
    gallery_db.write([put("b"), Delete("c")], CLIP)
    given = [(name, version, feature(9)) for version, name in enumerate("abcd", start=1)]
    assert gallery_db.add_features(OTHER, given) == 2
    assert gallery_db.add_features(OTHER, given) == 0
    assert [row.image_id for row in gallery_db.unencoded(OTHER)] == ["b"]
    assert gallery_db.version() == 6
    assert gallery_db.add_features(OTHER, []) == 0


def test_features_that_come_late_are_changes_of_images_that_stayed_as_they_were(
    gallery_db: GalleryDatabase,
) -> None:
    gallery_db.write([put("a"), put("b"), put("c"), put("d")], CLIP)
    seen = gallery_db.write([put("b"), Delete("c")], CLIP)[-1].version
    given = [(name, version, feature(9)) for version, name in enumerate("abcd", start=1)]
    assert gallery_db.add_features(OTHER, given[::-1], late=True) == 2
    changes = gallery_db.changes(seen, OTHER)
    assert list(states(changes.rows).items()) == [("a", 9.0), ("d", 9.0)]
    assert changes.version == gallery_db.version() == seen + 2
    assert gallery_db.encoders() == {CLIP: 3, OTHER: 2}


def test_the_unencoded_come_in_pages(gallery_db: GalleryDatabase) -> None:
    gallery_db.write([put(f"image-{number}") for number in range(7)], CLIP)
    first = gallery_db.unencoded(OTHER, limit=4)
    rest = gallery_db.unencoded(OTHER, limit=4, after=first[-1].version)
    assert [row.version for row in [*first, *rest]] == [1, 2, 3, 4, 5, 6, 7]


def test_features_of_another_size_are_refused_and_nothing_has_changed(
    gallery_db: GalleryDatabase,
) -> None:
    gallery_db.write([put("a", 1)], CLIP)
    with pytest.raises(GalleryError, match="another size") as caught:
        gallery_db.write([Delete("a"), Put("b", np.ones(DIM + 1, np.float32))], CLIP)
    assert caught.value.reason == "mismatch"
    assert (gallery_db.version(), states(gallery_db.changes(0, CLIP).rows)) == (1, {"a": 1.0})


@pytest.mark.parametrize("seed", range(3))
def test_any_changes_give_what_a_dictionary_gives(gallery_db: GalleryDatabase, seed: int) -> None:
    rng = random.Random(seed)
    there: dict[str, float] = {}
    followed: dict[str, float] = {}
    seen = 0
    for _ in range(40):
        changes: list[Change] = []
        for _ in range(rng.randrange(1, 8)):
            image_id, number = f"image-{rng.randrange(12)}", rng.randrange(1000)
            changes.append(put(image_id, number) if rng.random() < 0.6 else Delete(image_id))
        for change, done in zip(changes, gallery_db.write(changes, CLIP), strict=True):
            assert done.existed == (change.image_id in there)
            there.pop(change.image_id, None)
            if isinstance(change, Put):
                there[change.image_id] = float(change.feature[0])
        if rng.random() < 0.5:
            found = gallery_db.changes(seen, CLIP)
            for row in found.rows:
                followed.pop(row.image_id, None)
                if row.feature is not None:
                    followed[row.image_id] = float(row.feature[0])
            seen = found.version
            assert followed == there
    loaded = gallery_db.load(CLIP)
    assert (
        dict(
            zip(
                loaded.table["image_id"].to_pylist(), loaded.features_GD[:, 0].tolist(), strict=True
            )
        )
        == there
    )
    assert gallery_db.count() == len(there)


def test_writers_at_once_get_versions_without_gaps_and_a_follower_misses_nothing(url: str) -> None:
    writers, each = 6, 25
    with GalleryDatabase.open(url) as gallery_db, GalleryDatabase.open(url) as other:
        over = threading.Event()
        seen: dict[str, int] = {}

        def follow() -> int:
            version, ended = 0, False
            while not ended:
                ended = over.is_set()  # before the last look
                changes = other.changes(version, CLIP)
                assert all(row.version > version for row in changes.rows)
                seen.update((row.image_id, row.version) for row in changes.rows)
                version = changes.version
            return version

        def write(writer: int) -> list[Done]:
            mine = (gallery_db, other)[writer % 2]
            return [
                done
                for turn in range(each)
                for done in mine.write([put(f"{writer}-{turn}"), put(f"{writer}-{turn - 1}")], CLIP)
            ]

        with ThreadPoolExecutor(writers + 1) as threads:
            following = threads.submit(follow)
            done = [one for some in threads.map(write, range(writers)) for one in some]
            over.set()
            end = following.result(60)
        assert sorted(one.version for one in done) == list(range(1, 2 * writers * each + 1))
        assert end == gallery_db.version() == 2 * writers * each
        assert seen == {row.image_id: row.version for row in gallery_db.changes(0, CLIP).rows}


def test_who_begins_while_another_copies_waits_longer_than_for_a_write(url: str) -> None:
    copying, parts = threading.Event(), table(12).to_batches(max_chunksize=6)

    def slowly() -> Iterator[pa.RecordBatch]:
        yield parts[0]
        copying.set()
        time.sleep(1.0)
        yield parts[1]

    with GalleryDatabase.open(url) as one, GalleryDatabase.open(url, busy_s=0.2) as other:
        with ThreadPoolExecutor(1) as threads:
            first = threads.submit(one.begin, slowly(), CLIP, "digest")
            assert copying.wait(10)
            assert other.begin(table(3), CLIP, "another") == Seed("digest", 12) == first.result()
        assert other.count() == 12


def test_threads_that_begin_at_once_begin_once(url: str) -> None:
    with ThreadPoolExecutor(4) as threads:
        opened = list(threads.map(lambda _: GalleryDatabase.open(url), range(4)))
        seeds = list(threads.map(lambda one: one.begin(table(50), CLIP, "digest"), opened))
    assert seeds == [Seed("digest", 50)] * 4
    assert opened[0].count() == 50
    for one in opened:
        one.close()
