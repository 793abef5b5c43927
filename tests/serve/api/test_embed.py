"""POST /v1/embed and /v1/embed/batch on the real service, and the client's methods for them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest

from raycd import bundle
from raycd.api import Embedding
from raycd.client import AsyncClient, Client
from raycd.client.request import QueryFields
from raycd.search.searcher import Searcher
from serve.security.guard import needed_scope
from tests.search.arrays import fused, gallery_features, image_feature, text_feature, unit
from tests.serve.asking import fields, png, problem

if TYPE_CHECKING:
    from serve.args import ServeArgs


@pytest.fixture(scope="module")
def searcher(tiny_bundle: Any) -> Searcher:
    return Searcher(bundle.load(tiny_bundle.folder))


def embedded(response: httpx.Response) -> Embedding:
    assert response.status_code == 200, response.text
    return Embedding.model_validate(response.json())


def near(values: Any) -> Any:
    return pytest.approx(np.asarray(values).tolist(), abs=1e-4)


def test_an_image_a_text_and_both_have_the_encoders_features_and_the_heads_query(
    client: httpx.Client, searcher: Searcher, tiny_bundle: Any
) -> None:
    image, text = image_feature(searcher, tiny_bundle.images[3]), text_feature(searcher, "is blue")
    file = {"image": ("photo.png", png(tiny_bundle.images[3]), "image/png")}
    alone = embedded(client.post("/v1/embed", files=file))
    assert (alone.query, alone.image, alone.text) == (near(unit(image)), near(image), None)
    said = embedded(client.post("/v1/embed", json={"text": "is blue"}))
    assert (said.query, said.image, said.text) == (near(unit(text)), None, near(text))
    both = embedded(client.post("/v1/embed", files=file, data={"text": "is blue"}))
    assert (both.image, both.text) == (near(image), near(text))
    assert both.query == near(fused(searcher, image, text))
    assert {one.encoder for one in (alone, said, both)} == {
        searcher.bundle.manifest.encoder.fingerprint
    }
    assert (both.head, both.warnings) == ("clip_cd", [])
    assert list(both.timings) == ["decode", "encode", "total"]


def test_the_query_is_what_a_search_compares_images_with(
    client: httpx.Client, searcher: Searcher
) -> None:
    query: dict[str, Any] = {
        "images": [{"image_id": "image-1"}, {"image_id": "image-6", "weight": -0.5}],
        "text": "is blue",
        "negative_text": "has a belt",
        "text_weight": 2,
    }
    found = client.post("/v1/search", json={**query, "top_k": 12}).json()["results"]
    cosines = gallery_features(searcher) @ np.array(
        embedded(client.post("/v1/embed", json=query)).query
    )
    assert [one["score"] for one in found] == near(sorted(cosines, reverse=True))


def test_a_batch_and_the_client_give_the_same(
    client: httpx.Client, service_url: str, tiny_bundle: Any
) -> None:
    query: QueryFields = {"image_id": "image-3", "text": "is blue"}
    expected = embedded(client.post("/v1/embed", json=query))
    body = {"queries": [query, {"image_id": "nobody"}, {"wrong": 1}, {}]}
    items = client.post("/v1/embed/batch", json=body).json()["items"]
    assert [item["status"] for item in items] == [200, 404, 422, 422]
    assert items[0]["embedding"]["query"] == near(expected.query)
    assert "nobody" in items[1]["problem"]["detail"]
    with Client(service_url, timeout=60) as blocking:
        assert blocking.embed(image_id="image-3", text="is blue").query == near(expected.query)
        picture = png(tiny_bundle.images[3])
        [sent] = blocking.embed_batch([{"image": picture, "text": "is blue"}]).items
        assert blocking.embed_batch([]).items == []

    async def asynchronous() -> list[Embedding | None]:
        async with AsyncClient(service_url, timeout=60) as waiting:
            one = await waiting.embed(image=png(tiny_bundle.images[3]), text="is blue")
            return [one, *(item.embedding for item in (await waiting.embed_batch([query])).items)]

    for one in (sent.embedding, *asyncio.run(asynchronous())):
        assert one is not None
        assert one.query == near(expected.query)


def test_an_images_feature_can_be_added_to_a_gallery(live_url: str, tiny_bundle: Any) -> None:
    with Client(live_url, timeout=60) as client:
        made = client.embed(image=png(tiny_bundle.images[5]))
        assert made.image is not None
        written = client.put("embedded", feature=made.image, encoder=made.encoder)
        try:
            found = client.search(
                image=png(tiny_bundle.images[5]), top_k=2, min_version=written.version
            )
            assert {one.image_id for one in found.results} == {"image-5", "embedded"}
            assert [one.score for one in found.results] == pytest.approx([1.0, 1.0], abs=1e-4)
        finally:
            client.delete("embedded")


def test_limits_are_those_of_a_search(
    client: httpx.Client, start_replica: Callable[..., str], service_args: ServeArgs
) -> None:
    for body, field in (
        ({}, "text"),
        ({"text": "x" * 1001}, "text"),
        ({"text": "is blue", "top_k": 3}, "top_k"),
        ({"images": [{"image_id": "image-1"}] * 9}, "images"),
    ):
        assert fields(problem(client.post("/v1/embed", json=body), 422)) == [field]
    wrong = problem(client.post("/v1/embed/batch", json={"queries": [{}] * 5}), 422)
    assert wrong["limit"] == "max_batch"
    plain = client.post("/v1/embed/batch", content=json.dumps({"queries": [{}]}))
    problem(plain, 415)
    args = service_args.model_copy(update={"max_queue": 2})
    with httpx.Client(base_url=start_replica(args, "embed"), timeout=60) as few:
        queries = [{"images": [{"image_id": "image-1"}] * 2}] * 2
        items = few.post("/v1/embed/batch", json={"queries": queries}).json()["items"]
        assert [item["status"] for item in items] == [200, 200]  # one after the other


def test_a_key_that_may_read_may_embed() -> None:
    for path in ("/v1/embed", "/v1/embed/batch", "/v1/search", "/v1/search/batch"):
        assert needed_scope("POST", path) == "read"
    assert needed_scope("POST", "/v1/embedded") == "write"
    assert needed_scope("PUT", "/v1/embed") == "write"
