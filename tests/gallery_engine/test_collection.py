"""A collection and its connection: what is asked, what fails, and what is left."""

from __future__ import annotations

import gc
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from milvus_lite.server_manager import server_manager_instance
from pymilvus import MilvusClient
from pymilvus.client.connection_manager import ConnectionManager
from pymilvus.client.ts_utils import update_collection_ts

from raycd.errors import GalleryError
from raycd.gallery.records import Put
from raycd.gallery.state import Page
from raycd.gallery_db import GalleryDatabase
from raycd.gallery_db.leases import Lease
from raycd.gallery_engine import expressions, pushing
from raycd.gallery_engine.address import Address
from raycd.gallery_engine.collection import TIMEOUT_S, Collection, Marker
from raycd.gallery_engine.pushing import Push
from raycd.gallery_engine.view import EngineView, GalleryFacts
from tests import refused
from tests.gallery_engine.pushes import CLIP, DIM, contents, feature, finish, pushed, put
from tests.milvus import Milvus


def test_the_marker_is_the_newest_whatever_node_answers(
    milvus: Milvus, gallery_db: GalleryDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(gallery_db, 1)
    push, collection = pushed(milvus, gallery_db)
    finish(push)
    asked, original = list[Any](), MilvusClient.query

    def query(self: MilvusClient, *given: Any, **options: Any) -> Any:
        asked.append(options["consistency_level"])
        return original(self, *given, **options)

    monkeypatch.setattr(MilvusClient, "query", query)
    assert collection.marker() == Marker(1, 1)
    assert asked == ["Strong"]


@pytest.mark.slow
def test_a_collection_that_nobody_uses_any_more_has_no_connection(milvus: Milvus) -> None:
    def connections() -> int:
        return int(ConnectionManager.get_instance().get_stats()["dedicated_connections"])

    gc.collect()
    before = connections()
    collection = Collection(Address.parse(milvus.url), "raycd_none", DIM)
    assert collection.marker() is None
    assert connections() == before + 1
    del collection
    gc.collect()
    assert connections() == before


def test_an_image_with_very_many_numbers_does_not_stop_the_others(
    milvus: Milvus, gallery_db: GalleryDatabase
) -> None:
    many = {f"n{i}": "-1.2345678901234567e-100" for i in range(3000)}
    gallery_db.write([Put("many", feature(1), (), many)], CLIP)
    put(gallery_db, 2)
    push, collection = pushed(milvus, gallery_db)
    finish(push)
    [entity] = collection.query(expressions.keys(["many"]), ["numbers"], written=0)
    assert len(json.dumps(entity["numbers"])) < 65_536, "which is Milvus' limit"
    assert set(contents(collection)) == {"many", "image-2"}


def test_an_engine_that_is_not_there_is_told_and_nothing_waits_for_it() -> None:
    with refused.port() as port:
        collection = Collection(Address.parse(f"milvus://127.0.0.1:{port}"), "raycd_nowhere", DIM)
        none, query_BD = GalleryFacts.none(DIM), np.eye(1, DIM, dtype=np.float32)
        view = EngineView(collection, Marker(1, 1), 1, none, lambda *_, **__: Page([], 0))
        began = time.monotonic()
        with pytest.raises(GalleryError, match="does not answer") as caught:
            collection.marker()
        assert caught.value.reason == "engine"
        assert time.monotonic() - began < 2 * TIMEOUT_S
        began = time.monotonic()
        for ask in (lambda: view.find("a"), lambda: view.nearest(query_BD, 1)):
            with pytest.raises(GalleryError, match="does not answer"):
                ask()
        assert time.monotonic() - began < TIMEOUT_S
    assert view.has_category("a"), "nobody knows that it is unknown"
    assert (len(view), view.page([], {}, offset=0, limit=1, newest=True)) == (1, ([], 0))


def test_a_file_of_milvus_lite_is_opened_in_the_process(
    tmp_path: Path, gallery_db: GalleryDatabase
) -> None:
    put(gallery_db, 1, 2)
    file = tmp_path / "lite.db"
    collection = Collection(Address.parse(f"milvus://{file}"), "raycd_lite", DIM)
    lease = Lease(gallery_db, "raycd_lite", "me", pushing.LEASE_S)
    finish(Push(gallery_db, CLIP, collection, list, lease))
    assert contents(collection) == {"image-1": 1, "image-2": 2}
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
