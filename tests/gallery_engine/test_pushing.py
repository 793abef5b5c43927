"""The push of a database's changes to Milvus: whatever dies or is lost, both come to the same."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from milvus_lite.server_manager import server_manager_instance
from numpy.typing import NDArray
from pymilvus.client.ts_utils import update_collection_ts

from raycd.errors import ConfigError, GalleryError
from raycd.gallery.records import Delete, Put
from raycd.gallery.state import Page
from raycd.gallery_db import GalleryDatabase
from raycd.gallery_db.leases import Lease
from raycd.gallery_engine import expressions, pushing
from raycd.gallery_engine.address import TOKEN, Address
from raycd.gallery_engine.collection import TIMEOUT_S, Collection, Marker
from raycd.gallery_engine.pushing import Push
from raycd.gallery_engine.view import EngineView, Facts
from tests.milvus import Milvus

DIM = 4
CLIP, OTHER = "clip" * 16, "other" * 12


def feature(number: float) -> NDArray[np.float32]:
    return np.array([number, 1, 2, 3], np.float32)


def put(gallery_db: GalleryDatabase, *numbers: int, value: float = 0.0) -> int:
    changes = [Put(f"image-{i}", feature(i + value), ("dress",)) for i in numbers]
    return gallery_db.write(changes, CLIP)[-1].version


def pushed(
    milvus: Milvus, gallery_db: GalleryDatabase, holder: str = "me", fingerprint: str = CLIP
) -> tuple[Push, Collection]:
    name = pushing.name(gallery_db, fingerprint)
    collection = Collection(Address.parse(milvus.url), name, DIM)
    lease = Lease(gallery_db, name, holder, pushing.LEASE_S)
    return Push(gallery_db, fingerprint, collection, list, lease), collection


def finish(push: Push) -> None:
    while push.advance():
        pass


def contents(collection: Collection) -> dict[str, float]:
    """Return the first number of each image's feature."""
    found = collection.query(expressions.ALL, ["image_id", "feature", "length"], written=0)
    return {one["image_id"]: round(one["feature"][0] * one["length"], 3) for one in found}


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


def test_an_engine_that_is_not_there_is_told_and_nothing_waits_for_it() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"milvus://127.0.0.1:{free.getsockname()[1]}"
    collection = Collection(Address.parse(url), "raycd_nowhere", DIM)
    none = Facts.none(DIM)
    view = EngineView(collection, Marker(1, 1), 1, none, lambda *_, **__: Page([], 0))
    began = time.monotonic()
    with pytest.raises(GalleryError, match="does not answer") as caught:
        collection.marker()
    assert caught.value.reason == "engine"
    assert time.monotonic() - began < 2 * TIMEOUT_S
    began = time.monotonic()
    for ask in (lambda: view.find("a"), lambda: view.nearest(np.eye(1, DIM, dtype=np.float32), 1)):
        with pytest.raises(GalleryError, match="does not answer"):
            ask()
    assert time.monotonic() - began < 0.5
    assert view.has_category("a"), "nobody knows that it is unknown"
    assert (len(view), view.page([], {}, offset=0, limit=1, newest=True)) == (1, ([], 0))


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


def test_a_file_of_milvus_lite_is_opened_in_the_process(
    tmp_path: Path, gallery_db: GalleryDatabase
) -> None:
    put(gallery_db, 1, 2)
    file = tmp_path / "lite.db"
    collection = Collection(Address.parse(f"milvus://{file}"), "raycd_lite", DIM)
    lease = Lease(gallery_db, "raycd_lite", "me", pushing.LEASE_S)
    finish(Push(gallery_db, CLIP, collection, list, lease))
    assert contents(collection) == {"image-1": 1, "image-2": 2}
    collection.close()
    server_manager_instance.release_server(str(file))


def test_a_search_waits_for_what_was_written_before_its_marker(
    milvus: Milvus, gallery_db: GalleryDatabase
) -> None:
    put(gallery_db, 1)
    push, collection = pushed(milvus, gallery_db)
    finish(push)
    # As servers tell it that are more than one process
    update_collection_ts(collection.name, 7, collection.address.endpoint)
    put(gallery_db, 2)
    finish(push)
    marker = collection.marker()
    assert marker == Marker(2, 1, written=7)
    assert collection.count(expressions.ALL, written=7) == 2


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("milvus://host", Address("http://host:19530", "host:19530")),
        ("milvus://host:1/shop", Address("http://host:1", "host:1", "shop")),
        ("milvus://[::1]:1", Address("http://[::1]:1", "[::1]:1")),
        ("milvus+tls://host", Address("https://host:19530", "host:19530")),
        ("milvus://u:p%40@host", Address("http://host:19530", "host:19530", "", "u:p@")),
        ("milvus:///data/x.db", Address("/data/x.db", "/data/x.db")),
    ],
)
def test_an_address_says_host_database_and_token(url: str, expected: Address) -> None:
    assert Address.parse(url, {}) == expected
    assert "p@" not in repr(expected)


def test_the_token_comes_from_the_environment() -> None:
    assert Address.parse("milvus://host", {TOKEN: "a key"}).token == "a key"


@pytest.mark.parametrize(
    "url", ["http://host", "milvus://host:x", "milvus:///x", "milvus://u:secret@h?token=secret"]
)
def test_an_address_that_is_malformed_is_told_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError, match="malformed") as caught:
        Address.parse(url, {})
    assert "secret" not in str(caught.value)


def test_a_client_that_is_not_installed_is_named_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pymilvus") as caught:
        Address.parse("milvus://host", {}).check_installed()
    assert "raycd[milvus]" in str(caught.value)
