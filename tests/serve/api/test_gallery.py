"""The gallery, its pictures, what the page needs to know, and whether the service is well."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from raycd import bundle
from raycd.api import GalleryPage, Info
from raycd.client import Client
from raycd.gallery.records import Put
from raycd.gallery.view import View
from raycd.gallery_db import GalleryDatabase
from tests.serve.asking import fields, problem


def page(client: httpx.Client, **parameters: Any) -> GalleryPage:
    response = client.get("/v1/gallery", params=parameters)
    assert response.status_code == 200, response.text
    return GalleryPage.model_validate(response.json())


def test_the_gallery_page_by_page(client: httpx.Client, tiny_bundle: Any) -> None:
    first, second = page(client, limit=8), page(client, limit=8, offset=8)
    assert [item.image_id for item in first.items + second.items] == tiny_bundle.image_ids
    assert (first.total, second.total, second.offset) == (12, 12, 8)
    assert page(client, offset=100).items == []
    assert (first.items[1].category, first.items[3].attributes) == ("dress", {"pattern": "striped"})


def test_the_gallery_by_category_and_attribute(client: httpx.Client) -> None:
    assert [item.image_id for item in page(client, category="toptee", limit=3).items] == [
        "image-0",
        "image-2",
        "image-4",
    ]
    assert page(client, category=["dress", "shirt"]).total == 12
    found = page(client, category="dress", attribute="pattern:striped")
    assert [item.image_id for item in found.items] == ["image-3", "image-9"]
    assert fields(problem(client.get("/v1/gallery", params={"attribute": "striped"}), 422)) == [
        "attribute"
    ]
    assert problem(client.get("/v1/gallery", params={"limit": 41}), 422)["limit"] == "max_page"
    for offset in (-1, 2**53, 2**63):
        refused = problem(client.get("/v1/gallery", params={"offset": offset}), 422)
        assert fields(refused) == ["offset"]
    assert page(client, offset=2**53 - 1).items == []


COLOURS, PRICES = ("red", "blue", None), ("5", "10", "99.5", "cheap", None)
WORDS: dict[str, list[Any]] = {
    "in": [["red"], ["red", "5"], []],
    "not": [["blue"], ["cheap", "10"]],
    "gt": [5, 10],
    "gte": [10, -3.5],
    "lt": [10, 99.5],
    "lte": [5, 1e3],
}


@pytest.fixture(scope="module")
def labelled(
    start_replica: Callable[..., str],
    service_args: Any,
    tiny_bundle: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, dict[str, dict[str, str]]]:
    """Return the URL of a service, and its images with their attributes."""
    url = str(tmp_path_factory.mktemp("labelled") / "gallery.sqlite")
    images = {
        f"{colour}-{price}": {
            name: value for name, value in (("colour", colour), ("price", price)) if value
        }
        for colour, price in itertools.product(COLOURS, PRICES)
    }
    encoder = bundle.read_manifest(tiny_bundle.folder).encoder
    feature_D = np.ones(encoder.dim, np.float32)
    with GalleryDatabase.open(url) as gallery_db:
        puts = [Put(name, feature_D, (), attributes) for name, attributes in images.items()]
        gallery_db.write(puts, encoder.fingerprint)
    args = service_args.model_copy(update={"gallery": url})
    return start_replica(args, "labelled"), images


@pytest.mark.parametrize("seed", range(20))
def test_any_condition_shows_what_numpy_finds_and_what_a_search_finds(
    labelled: tuple[str, dict[str, dict[str, str]]], seed: int
) -> None:
    url, images = labelled
    rng = np.random.default_rng(seed)
    wanted: dict[str, Any] = {}
    for name in rng.permutation(["colour", "price"])[: rng.integers(1, 3)].tolist():
        words = rng.permutation(list(WORDS))[: rng.integers(1, 4)].tolist()
        wanted[name] = {word: WORDS[word][rng.integers(len(WORDS[word]))] for word in words}
    right = np.ones(len(images), np.bool_)
    for name, condition in wanted.items():
        values = np.array([attributes.get(name, "") for attributes in images.values()])
        numbers = np.array([float(v) if v[:1].isdigit() else np.nan for v in values])
        for word, than in condition.items():
            if word in ("in", "not"):
                right &= np.isin(values, np.array(than, values.dtype)) == (word == "in")
            else:
                compare = getattr(np, {"gt": "greater", "gte": "greater_equal"}.get(word, "less"))
                compare = np.less_equal if word == "lte" else compare
                right &= compare(numbers, than)
    expected = [name for name, is_right in zip(images, right.tolist(), strict=True) if is_right]
    with Client(url) as client:
        assert [item.image_id for item in client.iter_gallery(attributes=wanted)] == expected
        found = client.search(text="is blue", attributes=wanted, top_k=50)
        assert {result.image_id for result in found.results} == set(expected)


@pytest.mark.parametrize(
    ("parameters", "wrong"),
    [
        ({"attributes": "{"}, ["attributes"]),
        ({"attributes": "[]"}, ["attributes"]),
        ({"attributes": '{"price": {"above": 3}}'}, ["attributes.price.above"]),
        ({"attributes": '{"price": {"not_": ["a"]}}'}, ["attributes.price"]),
        ({"attributes": '{"price": {"in_": ["a"]}}'}, ["attributes.price"]),
        ({"attributes": '{"price": {}}'}, ["attributes.price"]),
        ({"attributes": '{"a": {"gt": 1}}', "attribute": "a:1"}, ["attributes"]),
    ],
)
def test_a_page_of_wrong_conditions_says_what_is_wrong(
    client: httpx.Client, parameters: dict[str, str], wrong: list[str]
) -> None:
    assert fields(problem(client.get("/v1/gallery", params=parameters), 422)) == wrong


def test_conditions_of_a_page_count_as_those_of_a_search(client: httpx.Client) -> None:
    many = json.dumps({"price": {"not": [str(number) for number in range(101)]}})
    refused = problem(client.get("/v1/gallery", params={"attributes": many}), 422)
    assert refused["limit"] == "max_filters"


def test_pictures_small_and_whole_with_a_name_of_their_content(
    client: httpx.Client, tiny_bundle: Any
) -> None:
    small = client.get("/v1/images/image-3")
    assert small.headers["content-type"] == "image/jpeg"
    assert Image.open(BytesIO(small.content)).size == (40, 48)
    whole = client.get("/v1/images/image-3", params={"size": "original"})
    assert whole.headers["content-type"] == "image/png"
    assert (
        Image.open(BytesIO(whole.content)).convert("RGB").tobytes()
        == tiny_bundle.images[3].tobytes()
    )
    again = client.get("/v1/images/image-3", headers={"if-none-match": small.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert "max-age" in small.headers["cache-control"]


@pytest.mark.parametrize("image_id", ["nobody", "../../etc/passwd", "image-3/"])
def test_a_picture_that_is_not_in_the_gallery_is_not_found(
    client: httpx.Client, image_id: str
) -> None:
    problem(client.get(f"/v1/images/{image_id.replace('/', '%2F')}"), 404)


def test_what_a_client_needs_to_know(client: httpx.Client) -> None:
    info = Info.model_validate(client.get("/v1/info").json())
    assert info.categories == {"shirt": 6, "toptee": 6, "dress": 6}
    assert info.attributes == {"pattern": {"striped": 4}}
    assert (info.limits.body_bytes, info.limits.batch, info.default_top_k) == (2_000_000, 4, 10)
    assert info.example_texts == ["is blue", "has long sleeves"]
    assert not info.image_url


def test_counting_a_gallery_for_info_keeps_nobody_waiting(
    labelled: tuple[str, dict[str, dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = labelled
    begun, let_go = threading.Event(), threading.Event()

    def counts(view: View) -> dict[str, int]:
        begun.set()
        let_go.wait(30)
        return {"dress": 1}

    monkeypatch.setattr(View, "category_counts", property(counts))
    with ThreadPoolExecutor(1) as threads, httpx.Client(base_url=url) as client:
        late = threads.submit(httpx.get, f"{url}/v1/info", timeout=60)
        try:
            assert begun.wait(30)
            assert client.get("/healthz", timeout=5).status_code == 200
        finally:
            let_go.set()
        assert late.result().json()["categories"] == {"dress": 1}


def test_health_readiness_and_the_interfaces_description(client: httpx.Client) -> None:
    assert client.get("/healthz").json()["status"] == "ok"
    ready = client.get("/readyz").json()
    assert (ready["status"], ready["replicas"]) == ("ready", 1)
    description = client.get("/openapi.json").json()
    search = description["paths"]["/v1/search"]["post"]
    assert set(search["requestBody"]["content"]) == {"application/json", "multipart/form-data"}
    assert set(search["responses"]) >= {"200", "400", "403", "404", "413", "415", "422", "503"}
    asked = search["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert {
        "image_id",
        "image_base64",
        "image_url",
        "text",
        "negative_text",
        "exclude_reference",
    } <= set(asked)
    assert {"SearchResponse", "BatchResponse", "Problem"} <= set(
        description["components"]["schemas"]
    )
    docs = client.get("/docs").text
    assert "swagger" in docs
    assert "https://" not in docs


def test_browsers_are_told_to_run_nothing_else(client: httpx.Client) -> None:
    headers = client.get("/").headers
    assert headers["content-security-policy"].startswith("default-src 'self'")
    assert "unsafe" not in headers["content-security-policy"]
    assert client.get("/v1/info").headers["x-content-type-options"] == "nosniff"
