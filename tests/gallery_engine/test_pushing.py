"""The push of a database's changes to Milvus: whatever dies or is lost, both come to the same."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from raycd.errors import GalleryError
from raycd.gallery.records import Delete, Row
from raycd.gallery.state import Page
from raycd.gallery_db import GalleryDatabase
from raycd.gallery_db.leases import Lease
from raycd.gallery_engine import expressions, pushing
from raycd.gallery_engine.address import Address
from raycd.gallery_engine.collection import WRITE_S, Collection, Marker
from raycd.gallery_engine.pushing import Push
from raycd.gallery_engine.view import EngineView, GalleryFacts
from tests.gallery_engine.pushes import CLIP, DIM, OTHER, contents, feature, finish, pushed, put
from tests.milvus import Milvus


def test_changes_come_in_parts_and_the_marker_says_how_far(
    milvus: Milvus, gallery_db: GalleryDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushing, "TOGETHER", 4)
    put(gallery_db, *range(10))
    gallery_db.write([Delete("image-3")], CLIP)
    push, collection = pushed(milvus, gallery_db)
    assert collection.marker() is None
    assert push.advance()
    first = collection.marker()
    assert first is not None
    assert (first.version, first.until, first.whole) == (5, 11, False)  # image-3 has version 11
    finish(push)
    assert collection.marker() == Marker(11, 11)
    assert contents(collection) == {f"image-{i}": i for i in range(10) if i != 3}
    put(gallery_db, 3, 5, value=100)
    finish(push)
    assert (push._pushed, collection.marker()) == (13, Marker(13, 11))
    assert contents(collection)["image-3"] == 103
    assert contents(collection)["image-5"] == 105


def test_one_holder_at_a_time_pushes_and_another_goes_on_where_it_ended(
    milvus: Milvus, gallery_db: GalleryDatabase
) -> None:
    put(gallery_db, 1)
    one, collection = pushed(milvus, gallery_db, "one")
    other, _ = pushed(milvus, gallery_db, "other")
    finish(one)
    version = put(gallery_db, 2)
    assert not other.advance()
    assert contents(collection) == {"image-1": 1}
    one.close()
    finish(other)
    assert contents(collection) == {"image-1": 1, "image-2": 2}
    assert collection.marker() == Marker(version, 1)
    put(gallery_db, 3)
    assert not one.advance()
    assert "image-3" not in contents(collection)


def test_a_collection_that_is_lost_is_filled_again(
    milvus: Milvus, gallery_db: GalleryDatabase
) -> None:
    put(gallery_db, *range(5))
    push, collection = pushed(milvus, gallery_db)
    finish(push)
    for newest in (5, 6):
        collection.drop()
        assert collection.marker() is None
        with pytest.raises(GalleryError, match="no collection") as caught:
            collection.count(expressions.ALL, written=0)
        assert caught.value.reason == "filling"
        if newest == 6:  # while there is something to push
            put(gallery_db, 5)
            with pytest.raises(GalleryError, match="no collection"):
                push.advance()
        finish(push)
        assert contents(collection) == {f"image-{i}": i for i in range(newest)}


def test_who_still_has_the_marker_of_a_lost_collection_finds_all_of_the_new_one_or_is_told(
    milvus: Milvus, gallery_db: GalleryDatabase
) -> None:
    version = put(gallery_db, *range(5))
    push, collection = pushed(milvus, gallery_db)
    finish(push)
    none = GalleryFacts.none(DIM)
    view = EngineView(collection, Marker(version, version), 5, none, lambda *_, **__: Page([], 0))
    query_BD = feature(1)[None] / np.linalg.norm(feature(1))
    assert view.nearest(query_BD, 9).scores.shape == (1, 5)
    collection.drop()
    collection.make()
    collection.mark(0, version)
    for allowed in (None, view.allowed(["dress"])):
        with pytest.raises(GalleryError, match="is being filled from the database"):
            view.nearest(query_BD, 3, allowed=allowed)
    finish(push)
    assert view.nearest(query_BD, 9).scores.shape == (1, 5)


def test_a_collection_that_lost_images_gets_them_again_and_stays_whole(
    milvus: Milvus, gallery_db: GalleryDatabase
) -> None:
    put(gallery_db, *range(5))
    push, collection = pushed(milvus, gallery_db)
    finish(push)
    collection.delete(["image-2", "image-3"])
    push.close()
    again, _ = pushed(milvus, gallery_db, "again")
    finish(again)
    assert contents(collection) == {f"image-{i}": i for i in range(5)}
    assert collection.marker() == Marker(5, 5)


def test_a_collection_that_lost_images_and_is_behind_gets_them_again(
    milvus: Milvus, gallery_db: GalleryDatabase
) -> None:
    put(gallery_db, *range(5))
    push, collection = pushed(milvus, gallery_db)
    finish(push)
    push.close()
    collection.delete(["image-2"])
    put(gallery_db, 5)
    again, _ = pushed(milvus, gallery_db, "again")
    finish(again)
    assert contents(collection) == {f"image-{i}": i for i in range(6)}


def test_images_that_come_while_they_are_counted_have_no_others_pushed_again(
    milvus: Milvus, gallery_db: GalleryDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(gallery_db, 1)
    push, _ = pushed(milvus, gallery_db)
    finish(push)
    push.close()
    original, sent = GalleryDatabase.encoders, list[str]()

    def late(self: GalleryDatabase) -> dict[str, int]:
        monkeypatch.setattr(GalleryDatabase, "encoders", original)
        put(gallery_db, 2)
        return original(self)

    def noted(self: Collection, rows: Sequence[Row]) -> None:
        sent.extend(row.image_id for row in rows)

    monkeypatch.setattr(GalleryDatabase, "encoders", late)
    monkeypatch.setattr(Collection, "put", noted)
    again, _ = pushed(milvus, gallery_db, "again")
    again.advance()
    again.advance()
    assert sent == ["image-2"]


def test_a_database_that_is_older_than_the_collection_counts(
    milvus: Milvus, gallery_db: GalleryDatabase
) -> None:
    put(gallery_db, 1, 2)
    push, collection = pushed(milvus, gallery_db)
    finish(push)
    collection.mark(90, 2)
    finish(push)
    assert collection.marker() == Marker(2, 2)
    assert contents(collection) == {"image-1": 1, "image-2": 2}


def test_each_encoder_has_a_collection_of_its_own(
    milvus: Milvus, gallery_db: GalleryDatabase
) -> None:
    put(gallery_db, 1)
    gallery_db.add_features(OTHER, [("image-1", 1, feature(50))])
    push, collection = pushed(milvus, gallery_db)
    other, other_collection = pushed(milvus, gallery_db, fingerprint=OTHER)
    finish(push)
    finish(other)
    assert contents(collection) == {"image-1": 1}
    assert contents(other_collection) == {"image-1": 50}


def test_nothing_is_sent_when_the_lease_may_be_over(
    milvus: Milvus, gallery_db: GalleryDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(gallery_db, 1)
    push, collection = pushed(milvus, gallery_db)
    finish(push)
    put(gallery_db, 2)
    monkeypatch.setattr(pushing, "WRITE_S", 1000.0)
    with pytest.raises(GalleryError, match="lease"):
        push.advance()
    assert contents(collection) == {"image-1": 1}
    monkeypatch.undo()
    finish(push)
    assert contents(collection) == {"image-1": 1, "image-2": 2}


def test_a_lease_that_could_end_while_something_is_sent_is_taken_for_longer_before(
    milvus: Milvus, gallery_db: GalleryDatabase
) -> None:
    name = pushing.name(gallery_db, CLIP)
    collection = Collection(Address.parse(milvus.url), name, DIM)
    lease = Lease(gallery_db, name, "me", pushing.LEASE_S)

    def slow(rows: Sequence[Row]) -> list[Row]:
        lease._until = time.monotonic() + 1.5 * WRITE_S  # as if pictures had been encoded
        return list(rows)

    put(gallery_db, 1)
    finish(Push(gallery_db, CLIP, collection, slow, lease))
    assert lease.left_s > 2 * WRITE_S
    assert contents(collection) == {"image-1": 1}


def test_a_collection_that_took_too_long_to_make_is_not_marked(
    milvus: Milvus, gallery_db: GalleryDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a pusher that was asleep would say that what another one has filled is empty."""
    put(gallery_db, 1)
    push, collection = pushed(milvus, gallery_db)
    original = Collection.make

    def slow(self: Collection) -> None:
        original(self)
        push._lease._until = 0.0

    monkeypatch.setattr(Collection, "make", slow)
    with pytest.raises(GalleryError, match="lease"):
        push.advance()
    assert collection.marker() is None


PUSH = """
import sys
from raycd.gallery_db import GalleryDatabase
from raycd.gallery_db.leases import Lease
from raycd.gallery_engine import pushing
from raycd.gallery_engine.address import Address
from raycd.gallery_engine.collection import Collection

url, database, fingerprint = sys.argv[1:]
pushing.TOGETHER, pushing.WRITE_S = 5, 0.1
gallery_db = GalleryDatabase.open(database)
name = pushing.name(gallery_db, fingerprint)
collection = Collection(Address.parse(url), name, 4)
lease = Lease(gallery_db, name, "killed", 10.0)
push = pushing.Push(gallery_db, fingerprint, collection, list, lease)
while push.advance():
    print(push._pushed, flush=True)
"""


@pytest.mark.slow
def test_a_pusher_that_is_killed_loses_nothing(
    milvus: Milvus, gallery_db: GalleryDatabase, tmp_path: Path
) -> None:
    put(gallery_db, *range(400))
    gallery_db.write([Delete(f"image-{i}") for i in range(0, 400, 7)], CLIP)
    arguments = [milvus.url, str(tmp_path / "gallery.sqlite"), CLIP]
    with subprocess.Popen(
        [sys.executable, "-c", PUSH, *arguments], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pushed_to = [process.stdout.readline().strip() for _ in range(7)]
        process.kill()
    assert all(pushed_to)
    push, collection = pushed(milvus, gallery_db)
    marker = collection.marker()
    assert marker is not None
    assert not marker.whole
    end = time.monotonic() + 60
    while (collection.marker() or marker).version < gallery_db.version():
        assert time.monotonic() < end
        push.advance()
    assert contents(collection) == {f"image-{i}": i for i in range(400) if i % 7}


@pytest.mark.slow
def test_an_engine_that_is_away_is_told_and_comes_back(
    tmp_path: Path, gallery_db: GalleryDatabase
) -> None:
    put(gallery_db, 1)
    with Milvus(tmp_path / "data") as milvus:
        push, collection = pushed(milvus, gallery_db)
        finish(push)
        milvus.kill()
        put(gallery_db, 2)
        began = time.monotonic()
        with pytest.raises(GalleryError, match="does not answer") as caught:
            push.advance()
        assert caught.value.reason == "engine"
        assert "Traceback" not in str(caught.value)
        assert time.monotonic() - began < 10
        assert collection.failed is not None
        milvus.start()
        _finish_patiently(push, collection)
        assert contents(collection) == {"image-1": 1, "image-2": 2}


def _finish_patiently(push: Push, collection: Collection) -> None:
    end = time.monotonic() + 60
    while collection.failed is not None:
        assert time.monotonic() < end
        with suppress(GalleryError):  # a connection takes a moment
            finish(push)
