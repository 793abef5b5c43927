"""A service whose gallery Milvus has: over HTTP it answers like one with an index of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from raycd.gallery_db import GalleryDatabase
from raycd.gallery_engine import pushing
from raycd.gallery_engine.address import Address
from raycd.gallery_engine.collection import Collection
from serve.args import ServeArgs
from tests.milvus import Milvus
from tests.serve.asking import ask, png, problem
from tests.serve.conftest import running_replica


def until(state: Callable[[], object], what: str) -> None:
    end = time.monotonic() + 90
    while not state():
        assert time.monotonic() < end, f"waited for: {what}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Milvus]:
    with Milvus(tmp_path_factory.mktemp("milvus") / "data") as server:
        yield server


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("gallery") / "gallery.sqlite")


@pytest.fixture(scope="module")
def args(service_args: ServeArgs, milvus: Milvus, database: str) -> ServeArgs:
    changed = {"gallery": database, "gallery_engine": milvus.url, "lag_s": 0.4}
    return service_args.model_copy(update=changed)


@pytest.fixture(scope="module")
def client(ray_cluster: Any, args: ServeArgs) -> Iterator[httpx.Client]:
    with (
        running_replica(args, "engine") as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        until(lambda: client.get("/readyz").status_code == 200, "the collection to be filled")
        yield client


@pytest.fixture(scope="module")
def plain(start_replica: Callable[..., str], service_args: ServeArgs) -> Iterator[httpx.Client]:
    """Start a service of the same bundle with an index of its own."""
    with httpx.Client(base_url=start_replica(service_args, "plain"), timeout=60) as client:
        yield client


def collection(database: str, milvus: Milvus, fingerprint: str) -> Collection:
    with GalleryDatabase.open(database) as gallery_db:
        return Collection(Address.parse(milvus.url), pushing.name(gallery_db, fingerprint), 64)


def ids(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [result["image_id"] for result in response.json()["results"]]


QUERIES: list[dict[str, Any]] = [
    {"text": "is blue"},
    {"image_id": "image-3", "text": "is blue"},
    {"image_id": "image-3", "exclude_reference": True, "top_k": 20},
    {"text": "is blue", "category": ["dress", "toptee"], "offset": 2},
    {"text": "is blue", "attributes": {"pattern": {"not": ["striped"]}}, "top_k": 3},
    {"text": "is blue", "attributes": {"pattern": ["striped"]}, "among": ["image-3", "image-4"]},
    {"text": "is blue", "category": ["dres"], "attributes": {"colour": ["x"]}},
    {"image_id": "image-1", "category": ["dress"], "exclude_reference": True},
    {
        "images": [{"image_id": "image-1"}, {"image_id": "image-2", "weight": -0.5}],
        "exclude_reference": True,
        "top_k": 20,
    },
    {"text": "is blue", "group_by": "pattern", "near_duplicates": "hide", "diversity": 0.5},
    {"text": "is blue", "boost": {"attribute": "colour", "weight": 1}, "diversity": 0.5},
]


@pytest.mark.parametrize("query", QUERIES, ids=str)
def test_it_answers_like_a_service_with_an_index(
    client: httpx.Client, plain: httpx.Client, query: dict[str, Any]
) -> None:
    got, expected = (one.post("/v1/search", json=query).json() for one in (client, plain))
    assert [one["image_id"] for one in got["results"]] == [
        one["image_id"] for one in expected["results"]
    ]
    assert (got["total"], got["warnings"]) == (expected["total"], expected["warnings"])
    for mine, other in zip(got["results"], expected["results"], strict=True):
        assert (mine["category"], mine["attributes"]) == (other["category"], other["attributes"])
        assert mine["score"] == pytest.approx(other["score"], abs=1e-5)
        assert mine["explanation"] == pytest.approx(other["explanation"], abs=1e-5)


def test_a_picture_may_be_sent_and_one_of_the_gallery_be_fetched(
    client: httpx.Client, tiny_bundle: Any
) -> None:
    assert ids(ask(client, png(tiny_bundle.images[5]), top_k=1)) == ["image-5"]
    assert client.get("/v1/images/image-5").headers["content-type"] == "image/jpeg"
    problem(client.get("/v1/images/nobody"), 404)
    problem(client.post("/v1/search", json={"image_id": "nobody"}), 404)


def test_info_and_pages_tell_what_the_gallery_has(
    client: httpx.Client, plain: httpx.Client
) -> None:
    until(lambda: client.get("/v1/info").json()["categories"], "the categories to be counted")
    got, expected = (one.get("/v1/info").json() for one in (client, plain))
    assert (got["categories"], got["attributes"]) == (
        expected["categories"],
        expected["attributes"],
    )
    assert got["index"]["kind"] == "milvus"
    assert got["index"]["recall"] is None
    assert got["index"]["size"] == 12
    for path in ("/v1/gallery", "/v1/gallery?category=dress&limit=2&newest=true"):
        pages = [one.get(path).json() | {"version": 0} for one in (client, plain)]
        assert pages[0] == pages[1]


def test_scores_are_relative_to_the_gallery(client: httpx.Client, plain: httpx.Client) -> None:
    until(lambda: client.get("/v1/info").json()["categories"], "the gallery to be measured")
    got, expected = (
        [
            one["relative_score"]
            for one in each.post("/v1/search", json={"text": "is blue"}).json()["results"]
        ]
        for each in (client, plain)
    )
    assert got == pytest.approx(expected, abs=1e-3)


def test_what_was_written_is_found_by_its_version_and_what_was_deleted_is_not(
    client: httpx.Client, tiny_bundle: Any
) -> None:
    files: Any = {"image": ("x.png", png(tiny_bundle.images[2]), "image/png")}
    form = {"category": "new'", "attributes": '{"price": "12", "it\'s": "\\"odd\\""}'}
    written = client.put("/v1/gallery/fresh", files=files, data=form)
    assert written.status_code == 201, written.text
    query: dict[str, Any] = {
        "image_id": "image-2",
        "category": ["new'"],
        "attributes": {"price": {"gte": 11}, "it's": ['"odd"']},
    }
    version = written.json()["version"]
    found = client.post(f"/v1/search?min_version={version}", json=query)
    assert ids(found) == ["fresh"]
    assert found.json()["warnings"] == []
    assert found.json()["index"]["version"] >= version
    assert found.json()["index"]["lag_s"] < 5
    gone = client.delete("/v1/gallery/fresh").json()["version"]
    assert ids(client.post(f"/v1/search?min_version={gone}", json=query)) == []
    problem(client.post(f"/v1/search?min_version={gone + 9}", json=query), 422)


def test_an_exact_search_is_refused(client: httpx.Client) -> None:
    said = problem(client.post("/v1/search", json={"text": "is blue", "exact": True}), 422)
    assert "leave exact out" in said["detail"]
    assert client.post("/v1/search", json={"text": "is blue"}).status_code == 200


def test_a_collection_that_is_dropped_is_filled_again_while_the_service_says_so(
    client: httpx.Client, database: str, milvus: Milvus, args: ServeArgs
) -> None:
    fingerprint = _fingerprint(database)
    before = ids(client.post("/v1/search", json={"text": "is blue"}))
    collection(database, milvus, fingerprint).drop()
    said: set[str] = set()

    def back() -> bool:
        found = client.post("/v1/search", json={"text": "is blue"})
        if found.status_code == 503:
            assert found.headers["retry-after"]
            said.add(found.json()["detail"])
        return found.status_code == 200 and bool(said)

    until(back, "the collection to be filled again")
    assert any("filled from the database" in one or "no collection" in one for one in said)
    assert ids(client.post("/v1/search", json={"text": "is blue"})) == before


@pytest.mark.slow
def test_an_engine_that_is_away_stops_searches_but_no_writes_and_comes_back(
    client: httpx.Client, milvus: Milvus, tiny_bundle: Any
) -> None:
    assert client.get("/readyz").status_code == 200
    milvus.kill()
    until(lambda: client.get("/readyz").status_code == 503, "readyz to be red")
    began = time.monotonic()
    refused = client.post("/v1/search", json={"text": "is blue"})
    assert time.monotonic() - began < 5
    assert "search engine does not answer" in problem(refused, 503)["detail"]
    assert refused.headers["retry-after"]
    files: Any = {"image": ("x.png", png(tiny_bundle.images[4]), "image/png")}
    written = client.put("/v1/gallery/meanwhile", files=files, data={"category": "new"})
    assert written.status_code == 201
    assert client.get("/v1/gallery?category=new").json()["items"][0]["image_id"] == "meanwhile"
    milvus.start()
    until(lambda: client.get("/readyz").status_code == 200, "the engine to be back")
    version = written.json()["version"]
    query = {"image_id": "image-4", "category": ["new"]}
    assert ids(client.post(f"/v1/search?min_version={version}", json=query)) == ["meanwhile"]
    client.delete("/v1/gallery/meanwhile")


@pytest.mark.slow
def test_a_service_starts_without_its_engine_and_takes_it_when_it_is_there(
    ray_cluster: Any, args: ServeArgs, tmp_path: Path
) -> None:
    with Milvus(tmp_path / "data") as late:
        late.kill()
        changed = {"gallery": str(tmp_path / "g.sqlite"), "gallery_engine": late.url}
        with (
            running_replica(args.model_copy(update=changed), "late") as url,
            httpx.Client(base_url=url, timeout=60) as client,
        ):
            problem(client.get("/readyz"), 503)
            assert client.get("/v1/info").json()["index"]["size"] == 0
            late.start()
            until(lambda: client.get("/readyz").status_code == 200, "the engine")
            assert len(ids(client.post("/v1/search", json={"text": "is blue"}))) == 10


def _fingerprint(database: str) -> str:
    with GalleryDatabase.open(database) as gallery_db:
        [fingerprint] = gallery_db.encoders()
    return fingerprint
