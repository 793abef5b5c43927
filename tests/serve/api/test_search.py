"""POST /v1/search and /v1/search/batch on the real service."""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import httpx
import pytest

from raycd import bundle
from raycd.api import SearchResponse
from raycd.data import images
from raycd.search.query import Query
from raycd.search.searcher import Searcher
from tests.serve.asking import ask, fields, png, problem


@pytest.fixture(scope="module")
def searcher(tiny_bundle: Any) -> Searcher:
    return Searcher(bundle.load(tiny_bundle.folder))


def found(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [result["image_id"] for result in response.json()["results"]]


def test_an_answer_has_results_scores_model_index_and_timings(
    client: httpx.Client, searcher: Searcher, tiny_bundle: Any
) -> None:
    data = png(tiny_bundle.images[3])
    response = ask(client, data, text="is blue with long sleeves", top_k=4)
    assert response.status_code == 200, response.text
    answer = SearchResponse.model_validate(response.json())
    decoded = images.decode(data, max_pixels=10**6, min_side=1)
    [expected] = searcher.search([Query(decoded, "is blue with long sleeves", top_k=4)])
    for got, result in zip(answer.results, expected, strict=True):
        assert (got.image_id, got.category) == (result.image_id, result.category)
        assert got.attributes == searcher.own.attributes(result.position)
        assert got.score == pytest.approx(result.score, abs=1e-5)
        assert got.relative_score == pytest.approx(result.relative_score, abs=1e-3)
        assert got.explanation.image == pytest.approx(result.image_score, abs=1e-5)
        assert got.explanation.text == pytest.approx(result.text_score, abs=1e-5)
        assert got.thumbnail == f"v1/images/{got.image_id}"
    assert (answer.total, answer.warnings) == (12, [])
    assert answer.index.model_dump() == {
        "kind": "flat",
        "size": 12,
        "version": 0,
        "recall": 1.0,
        "lag_s": 0.0,
    }
    assert searcher.bundle.manifest.encoder.fingerprint.startswith(answer.model.fingerprint)
    assert (answer.model.preset, answer.model.encoder, answer.model.head) == (
        "demo",
        "raycd-demo",
        "clip_cd",
    )
    assert answer.model.metrics == {"average": {"recall@10": 0.5}}
    steps = ["read", "decode", "wait", "encode", "search", "total"]
    assert list(answer.timings) == steps
    assert sum(answer.timings[step] for step in steps[:-1]) <= answer.timings["total"] + 0.1
    header = response.headers["server-timing"]
    assert [part.partition(";")[0] for part in header.split(", ")] == [*steps, "batch"]
    assert 'batch;desc="1"' in header


def test_every_answer_has_a_query_id_of_its_own_also_in_its_header(client: httpx.Client) -> None:
    body = {"text": "is blue", "top_k": 1}
    single = [client.post("/v1/search", json=body) for _ in range(2)]
    assert [one.headers["raycd-query-id"] for one in single] == [
        one.json()["query_id"] for one in single
    ]
    batch = client.post("/v1/search/batch", json={"searches": [body, body]}).json()["items"]
    ids = [one.json()["query_id"] for one in single]
    ids += [item["response"]["query_id"] for item in batch]
    assert len({UUID(query_id) for query_id in ids}) == 4


def test_every_way_to_give_an_image_finds_the_same(client: httpx.Client, tiny_bundle: Any) -> None:
    data = png(tiny_bundle.images[5])
    encoded = base64.b64encode(data).decode()
    ways: list[dict[str, Any]] = [
        {"image_base64": encoded},
        {"image_base64": f"data:image/png;base64,{encoded}"},
        {"image_id": "image-5"},
    ]
    expected = found(ask(client, data, text="is blue", top_k=12))
    assert len(expected) == 12
    for way in ways:
        assert (
            found(client.post("/v1/search", json={**way, "text": "is blue", "top_k": 12}))
            == expected
        )
        assert found(ask(client, text="is blue", top_k=12, **way)) == expected


def test_an_image_alone_and_a_text_alone_are_queries(
    client: httpx.Client, tiny_bundle: Any
) -> None:
    response = ask(client, png(tiny_bundle.images[5]))
    assert found(response)[0] == "image-5"
    assert response.json()["results"][0]["explanation"]["text"] is None
    response = client.post("/v1/search", json={"text": "a blue dress"})
    assert len(found(response)) == 10
    assert response.json()["results"][0]["explanation"]["image"] is None


def test_filters_paging_and_the_reference_left_out(client: httpx.Client) -> None:
    asked: dict[str, Any] = {"image_id": "image-4", "text": "is blue", "top_k": 12}
    whole = found(client.post("/v1/search", json=asked))
    dresses = client.post("/v1/search", json={**asked, "category": ["dress"]})
    assert found(dresses) == [image_id for image_id in whole if int(image_id[6:]) % 2]
    assert dresses.json()["total"] == 6
    assert found(ask(client, **asked, category="dress")) == found(dresses)
    striped = client.post("/v1/search", json={**asked, "attributes": {"pattern": ["striped"]}})
    assert found(striped) == [image_id for image_id in whole if int(image_id[6:]) % 3 == 0]
    assert found(ask(client, **asked, attributes=json.dumps({"pattern": ["striped"]}))) == found(
        striped
    )
    plain = {"pattern": {"not": ["striped"]}}
    others = client.post("/v1/search", json={**asked, "attributes": plain})
    assert found(others) == [image_id for image_id in whole if int(image_id[6:]) % 3]
    assert others.json()["total"] == 8
    assert found(ask(client, **asked, attributes=json.dumps(plain))) == found(others)
    both = {"pattern": {"in": ["striped", "x"], "not": ["x"]}}
    assert found(client.post("/v1/search", json={**asked, "attributes": both})) == found(striped)
    assert found(client.post("/v1/search", json={**asked, "top_k": 4, "offset": 4})) == whole[4:8]
    assert found(client.post("/v1/search", json={**asked, "exact": True})) == whole
    without = client.post("/v1/search", json={**asked, "exclude_reference": True})
    assert found(without) == [image_id for image_id in whole if image_id != "image-4"]
    assert without.json()["total"] == 11
    dresses = client.post(
        "/v1/search", json={**asked, "exclude_reference": True, "category": ["dress"]}
    ).json()
    assert dresses["total"] == 6  # it is none
    nothing = client.post("/v1/search", json={**asked, "category": ["hat"]}).json()
    assert (nothing["results"], nothing["total"]) == ([], 0)


def test_only_the_images_that_are_named_are_searched(client: httpx.Client) -> None:
    asked: dict[str, Any] = {"image_id": "image-4", "text": "is blue", "top_k": 12}
    whole = found(client.post("/v1/search", json=asked))
    names = ["image-9", "image-4", "image-1", "image-6", "nobody"]
    some = client.post("/v1/search", json={**asked, "among": names})
    assert found(some) == [image_id for image_id in whole if image_id in names]
    assert some.json()["total"] == 4
    assert some.json()["warnings"] == ["the gallery has no image 'nobody'"]
    both = client.post("/v1/search", json={**asked, "among": names, "category": ["dress"]})
    assert set(found(both)) == {"image-1", "image-9"}
    form = [(None, name) for name in ("image-1", "image-6")]
    files: Any = [("image_id", (None, "image-4")), *(("among", name) for name in form)]
    assert set(found(client.post("/v1/search", files=files))) == {"image-1", "image-6"}
    assert found(client.post("/v1/search", json={**asked, "among": ["nobody"]})) == []
    many = client.post("/v1/search", json={**asked, "among": [f"i{n}" for n in range(101)]})
    assert problem(many, 422)["limit"] == "max_filters"


def test_a_text_that_is_cut_is_told(client: httpx.Client) -> None:
    warnings = client.post("/v1/search", json={"text": "is blue " * 60}).json()["warnings"]
    assert len(warnings) == 1
    assert "cut off" in warnings[0]


def test_concurrent_searches_are_answered_as_one_by_one(
    client: httpx.Client, tiny_bundle: Any
) -> None:
    queries = [(png(tiny_bundle.images[i % 12]), f"is number {i}", 1 + i % 5) for i in range(40)]

    def results(query: tuple[bytes, str, int]) -> tuple[dict[str, float], str]:
        response = ask(client, query[0], text=query[1], top_k=query[2])
        scores = zip(found(response), response.json()["results"], strict=True)
        return {name: one["score"] for name, one in scores}, response.headers["server-timing"]

    alone = [results(query)[0] for query in queries]
    with ThreadPoolExecutor(16) as threads:
        together = list(threads.map(results, queries))
    # Of two that are equal but for rounding, which depends on the batch, either may come first
    assert [own for own, _ in together] == [pytest.approx(own, abs=1e-5) for own in alone]
    assert any('batch;desc="1"' not in header for _, header in together)


def test_broken_images_fail_alone_amid_concurrent_searches(
    client: httpx.Client, tiny_bundle: Any
) -> None:
    good = png(tiny_bundle.images[0])
    bodies = [good if i % 2 else b"not an image" for i in range(16)]
    with ThreadPoolExecutor(16) as threads:
        statuses = [
            r.status_code
            for r in threads.map(lambda body: ask(client, body, text="is blue"), bodies)
        ]
    assert statuses == [422, 200] * 8


def test_each_search_of_a_batch_succeeds_or_fails_by_itself(client: httpx.Client) -> None:
    searches: list[Any] = [
        {"image_id": "image-1", "text": "is blue", "top_k": 3},
        {"image_id": "nobody", "text": "is blue"},
        {"image_base64": base64.b64encode(b"no image").decode()},
        7,
    ]
    response = client.post("/v1/search/batch", json={"searches": searches})
    assert response.status_code == 200, response.text
    items = response.json()["items"]
    assert [item["status"] for item in items] == [200, 404, 422, 422]
    alone = client.post("/v1/search", json=searches[0]).json()
    assert [result["image_id"] for result in items[0]["response"]["results"]] == [
        result["image_id"] for result in alone["results"]
    ]
    assert items[0]["problem"] is None
    assert "nobody" in items[1]["problem"]["detail"]
    assert items[2]["problem"]["reason"] == "not_an_image"
    assert "dictionary" in items[3]["problem"]["detail"]


def test_a_batch_is_bounded_and_has_a_shape(client: httpx.Client) -> None:
    body = problem(client.post("/v1/search/batch", json={"searches": [{"text": "x"}] * 5}), 422)
    assert (body["limit"], fields(body)) == ("max_batch", ["searches"])
    assert fields(problem(client.post("/v1/search/batch", json={"searches": []}), 422)) == [
        "searches"
    ]
    assert fields(problem(client.post("/v1/search/batch", json={}), 422)) == ["searches"]
    problem(client.post("/v1/search/batch", json=[1]), 422)
    problem(
        client.post("/v1/search/batch", content=b"{", headers={"content-type": "application/json"}),
        400,
    )
