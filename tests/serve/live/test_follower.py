"""A replica's gallery follows its database, whatever the kind of its index."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from raycd import bundle
from raycd.config import IndexConfig
from raycd.errors import GalleryError
from raycd.gallery import live, recent
from raycd.gallery.recent import Recent
from raycd.gallery.records import Delete, Put, Seed
from raycd.gallery.view import View
from raycd.gallery_db import GalleryDatabase
from raycd.index import on_gpu
from raycd.index.on_gpu import OnGpu
from raycd.index.structure import Structure
from raycd.search.searcher import Searcher
from serve.args import ServeArgs
from serve.live import follower, unencoded
from serve.live.follower import Follower
from serve.live.store import GalleryStore

ADDED = 300


def until(state: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not state():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[GalleryStore]:
    with GalleryDatabase.open(str(tmp_path / "gallery.sqlite")) as gallery_db:
        yield GalleryStore(gallery_db, None)


@pytest.fixture
def model() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as thread:
        yield thread


@pytest.fixture
def follow(
    tiny_bundle: Any, store: GalleryStore, model: ThreadPoolExecutor
) -> Iterator[Callable[..., Any]]:
    """Return what starts a follower of an index of some settings, and gives its searcher."""
    followers: list[Follower] = []

    def start(*, on: str = "cpu", **settings: Any) -> Searcher:
        loaded = bundle.load(tiny_bundle.folder)
        config = loaded.config.model_copy(update={"index": IndexConfig(**settings)})
        searcher = Searcher(replace(loaded, config=config))
        args = ServeArgs(lag_s=0.1, gpus=float(on == "gpu"), index_on=on)
        followers.append(Follower(searcher, store, model, args))
        return searcher

    yield start
    for each in followers:
        each.stop()


def features(searcher: Searcher, count: int) -> NDArray[np.float32]:
    return (
        np.random.default_rng(0).normal(size=(count, searcher.bundle.index.dim)).astype(np.float32)
    )


def put(store: GalleryStore, searcher: Searcher, features_ND: NDArray[np.float32]) -> int:
    """Put images new-0 ...; return the version after the last."""
    fingerprint = searcher.bundle.manifest.encoder.fingerprint
    changes = [
        Put(f"new-{i}", feature_D, ("dress",), {}, None) for i, feature_D in enumerate(features_ND)
    ]
    return store.gallery_db.write(changes, fingerprint)[-1].version


def faiss(searcher: Searcher) -> View:
    assert isinstance(searcher.view, View)
    return searcher.view


def has_version(searcher: Searcher, version: int) -> bool:
    return searcher.view.version >= version


@pytest.mark.parametrize(
    ("kind", "on"),
    [*((one, "cpu") for one in ("flat", "hnsw", "ivf", "half", "rabitq")), ("ivf", "gpu")],
)
def test_many_changes_become_an_index_of_its_kind_that_misses_nothing(
    follow: Callable[..., Searcher],
    store: GalleryStore,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    on: str,
) -> None:
    monkeypatch.setattr(live, "REBUILD_FROM", 100)
    moved: list[str] = []

    def make(structure: Structure, device: str) -> OnGpu:
        moved.append(device)
        return OnGpu(structure, "cpu:0")

    monkeypatch.setattr(on_gpu, "OnGpu", make)
    searcher = follow(kind=kind, on=on, flat_up_to=50, sample=50, ivf_lists=2)
    first = faiss(searcher).index
    assert moved == ["cuda"] * (on == "gpu")
    assert (first is searcher.bundle.index) == (on == "cpu")
    features_ND = features(searcher, ADDED)
    version = put(store, searcher, features_ND)
    gone = [f"new-{i}" for i in range(0, ADDED, 7)]
    until(lambda: searcher.view.version >= version and faiss(searcher).index is not first)
    version = store.gallery_db.write([Delete(image_id) for image_id in gone], "")[
        -1
    ].version  # of the new index
    until(lambda: searcher.view.version >= version)
    view = faiss(searcher)
    assert view.index.kind == kind
    assert len(view) == 12 + ADDED - len(gone)
    unit_ND = features_ND / np.linalg.norm(features_ND, axis=1, keepdims=True)
    _, rows = view.search(unit_ND, 1, exact=True)
    found = [view.image_id(row) for row in rows[:, 0].tolist()]
    assert [image_id for i, image_id in enumerate(found) if i % 7] == [
        f"new-{i}" for i in range(ADDED) if i % 7
    ]
    assert not set(found) & set(gone)
    _, near = view.search(unit_ND, 10)
    assert not {view.image_id(row) for row in near.ravel().tolist() if row >= 0} & set(gone)
    assert view.index.recall is not None
    assert view.index.recall >= 0.9


def test_a_gallery_of_a_databases_own_is_in_files_where_the_memory_has_a_bound(
    follow: Callable[..., Searcher], store: GalleryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Follower, "_provisional", lambda self: False)
    first = follow()
    features_ND = features(first, 300)
    version = put(store, first, features_ND)
    until(lambda: has_version(first, version))
    monkeypatch.setattr(store.gallery_db, "seed", lambda: Seed("another bundle", 0))
    plain, bound = faiss(follow()), faiss(follow(memory_mib=1, flat_up_to=50))
    assert (plain.index.kind, bound.index.kind) == ("flat", "half")
    assert (len(plain), plain.version) == (len(bound), bound.version) == (312, version)
    unit_ND = features_ND / np.linalg.norm(features_ND, axis=1, keepdims=True)
    scores, positions = bound.search(unit_ND, 1)
    true_scores, true_positions = plain.search(unit_ND, 1)
    np.testing.assert_allclose(scores, true_scores, atol=5e-4)
    np.testing.assert_array_equal(positions, true_positions)


def test_one_image_more_than_fits_does_not_rebuild_the_index(
    follow: Callable[..., Searcher], store: GalleryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else images that come and go at the bound would have it rebuilt all the time."""
    searcher = follow(kind="ivf", flat_up_to=5, sample=50, ivf_lists=2)
    until(lambda: faiss(searcher).index.kind == "ivf")
    monkeypatch.setattr(follower, "kind_for", lambda *given: "sq8")
    built, original = list[Any](), bundle.build_index

    def build(*given: Any, **more: Any) -> Any:
        built.append(given)
        return original(*given, **more)

    monkeypatch.setattr(bundle, "build_index", build)
    for _ in range(2):
        version = put(store, searcher, features(searcher, 1))
        until(partial(has_version, searcher, version))
    assert (faiss(searcher).index.kind, built) == ("ivf", [])


def test_what_changes_while_an_index_is_built_is_in_it_when_it_is_taken_over(
    follow: Callable[..., Searcher], store: GalleryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "REBUILD_FROM", 100)
    searcher = follow(kind="ivf", sample=50, ivf_lists=2)
    fingerprint, first, original = (
        searcher.bundle.manifest.encoder.fingerprint,
        faiss(searcher).index,
        bundle.build_index,
    )
    others = [
        Put(f"other-{i}", one, (), {}, None)
        for i, one in enumerate(features(searcher, follower.BEHIND + 1))
    ]

    def built(*given: Any, **settings: Any) -> Any:
        if faiss(searcher).index is first:
            version = store.gallery_db.write([*others, Delete("new-0")], fingerprint)[-1].version
            until(lambda: searcher.view.version >= version)  # the old one is followed meanwhile
        return original(*given, **settings)

    monkeypatch.setattr(bundle, "build_index", built)
    put(store, searcher, features(searcher, ADDED))
    until(lambda: faiss(searcher).index is not first)
    view = faiss(searcher)
    assert view.version >= 12 + ADDED + len(others) + 1
    assert len(view) == 12 + ADDED + len(others) - 1
    assert view.position("new-0") is None
    assert view.position("other-0") is not None


def test_the_database_is_followed_while_what_came_is_put_into_lists(
    follow: Callable[..., Searcher], store: GalleryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "REBUILD_FROM", 100)
    searcher = follow(kind="ivf", sample=50, ivf_lists=2)
    put(store, searcher, features(searcher, ADDED))
    until(lambda: faiss(searcher).index.kind == "ivf")
    monkeypatch.setattr(live, "REBUILD_FROM", 10_000)
    monkeypatch.setattr(recent, "MAX_UNINDEXED", 100)
    going_on, original = threading.Event(), Recent.put_into_lists

    def slow(self: Recent) -> Recent:
        going_on.wait(60)
        return original(self)

    monkeypatch.setattr(Recent, "put_into_lists", slow)
    for count in (ADDED, ADDED + 1):  # the second while the first wait for lists
        until(partial(has_version, searcher, put(store, searcher, features(searcher, count))))
        assert faiss(searcher).additions.features.listed == 0
    going_on.set()
    until(lambda: faiss(searcher).additions.features.listed > 0)


def test_more_images_than_a_replica_encodes_are_refused_though_the_bundle_has_begun_the_gallery(
    follow: Callable[..., Searcher], store: GalleryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow()
    store.gallery_db.write(
        [Put(f"other-{i}", np.ones(8, np.float32), (), {}, None) for i in range(3)], "f" * 64
    )
    monkeypatch.setattr(unencoded, "ENCODED", 2)
    with pytest.raises(GalleryError, match="more without features of encoder"):
        follow()
    monkeypatch.setattr(unencoded, "ENCODED", 3)
    assert len(follow().view) == 12  # without pictures, they cannot be found


def test_an_image_that_a_replica_encodes_at_its_start_keeps_its_place(
    tiny_bundle: Any,
    follow: Callable[..., Searcher],
    store: GalleryStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store.gallery_db, "seed", lambda: Seed("another bundle", 0))
    searcher = Searcher(bundle.load(tiny_bundle.folder))
    picture = str(tiny_bundle.folder.parent / "image-3.png")
    store.gallery_db.write([Put("encoded", np.ones(8, np.float32), path=picture)], "f" * 64)
    put(store, searcher, features(searcher, 1))
    page = faiss(follow()).page([], {}, offset=0, limit=2, newest=True)
    assert [image.image_id for image in page.images] == ["new-0", "encoded"]


def test_many_changes_at_once_are_taken_over_in_parts_and_versions_only_grow(
    follow: Callable[..., Searcher], store: GalleryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "TAKEN", 20)
    monkeypatch.setattr(live, "REBUILD_FROM", 100)  # a new index is behind when it is taken over
    noted, original = list[tuple[Searcher, int]](), Follower._wake_waiting

    def note(self: Follower) -> None:
        noted.append((self._searcher, self._searcher.view.version))
        original(self)

    monkeypatch.setattr(Follower, "_wake_waiting", note)
    searcher = follow(kind="ivf", sample=50, ivf_lists=2)
    first = faiss(searcher).index
    version = put(store, searcher, features(searcher, ADDED))
    until(lambda: has_version(searcher, version) and faiss(searcher).index is not first)
    assert len(searcher.view) == 12 + ADDED
    seen = [version for of, version in noted if of is searcher]  # others may still follow
    assert seen == sorted(seen)
    assert len({one for one in seen if 12 < one < version}) > 5
