"""Diversity, near-duplicates, groups and boosts over the real service and by the client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest

from raycd.client import AsyncClient, Client
from tests.serve.asking import ask, fields, png, problem

if TYPE_CHECKING:
    from serve.args import ServeArgs

QUERY: dict[str, Any] = {"text": "is blue", "top_k": 40}


@pytest.fixture(scope="module")
def shop_url(
    start_replica: Callable[..., str],
    service_args: ServeArgs,
    tiny_bundle: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """Run a service whose gallery has prices, brands, and the same picture twice."""
    database = tmp_path_factory.mktemp("shop") / "gallery.sqlite"
    args = service_args.model_copy(
        update={"gallery": str(database), "candidates": 20, "near_duplicate": 0.9999}
    )
    url = start_replica(args, "shop")
    with Client(url, timeout=60) as client:
        for number in range(9):
            attributes = {"brand": f"b{number % 3}", "price": str(10 * number)}
            picture = png(tiny_bundle.images[number])
            version = client.put(f"new-{number}", picture, attributes=attributes).version
        client.search(**QUERY, min_version=version)
    return url


@pytest.fixture(scope="module")
def shop(shop_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=shop_url, timeout=60) as client:
        yield client


def results(client: httpx.Client, **wanted: Any) -> list[dict[str, Any]]:
    response = client.post("/v1/search", json={**QUERY, **wanted})
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["results"]
    return found


def ids(found: list[dict[str, Any]]) -> list[str]:
    return [one["image_id"] for one in found]


def vectors(client: httpx.Client, image_ids: list[str]) -> Any:
    queries = [{"image_id": image_id} for image_id in image_ids]
    found = []
    for first in range(0, len(queries), 4):
        body = {"queries": queries[first : first + 4]}
        items = client.post("/v1/embed/batch", json=body).json()["items"]
        found += [item["embedding"]["query"] for item in items]
    return np.array(found)


def test_a_group_has_one_result_and_a_boost_says_what_decided(shop: httpx.Client) -> None:
    among = [f"new-{number}" for number in range(9)]
    plain = results(shop, among=among)
    seen: dict[str, str] = {}
    for one in plain:
        seen.setdefault(one["attributes"]["brand"], one["image_id"])
    assert ids(results(shop, among=among, group_by="brand")) == list(seen.values())
    boosted = results(shop, among=among, boost={"attribute": "price", "weight": 0.5})
    expected = {
        one["image_id"]: one["score"] + 0.5 * float(one["attributes"]["price"]) / 80
        for one in plain
    }
    assert {one["image_id"]: one["boosted_score"] for one in boosted} == pytest.approx(expected)
    assert ids(boosted) == sorted(expected, key=lambda one: -expected[one])
    assert {one["boosted_score"] for one in plain} == {None}


def test_the_same_picture_is_shown_once_where_near_duplicates_are_hidden(
    shop: httpx.Client,
) -> None:
    whole, shown = ids(results(shop)), ids(results(shop, near_duplicates="hide"))
    assert len(whole) == 21
    numbers = [int(one.rpartition("-")[2]) for one in shown]
    assert len(numbers) == len(set(numbers))
    unit_ND = vectors(shop, whole[:20])
    kept: list[int] = []
    for at in range(20):
        if all(unit_ND[at] @ unit_ND[other] < 0.9999 for other in kept):
            kept.append(at)
    assert shown == [whole[at] for at in kept]


def test_diverse_results_are_those_of_the_definition_page_by_page(shop: httpx.Client) -> None:
    among = [f"image-{number}" for number in range(12)]  # the same picture twice is a tie
    plain = results(shop, among=among)
    unit_ND, chosen = vectors(shop, ids(plain)), [0]
    while len(chosen) < 9:
        nearest = (unit_ND @ unit_ND[chosen].T).max(axis=1)
        left = [at for at in range(12) if at not in chosen]
        value = [0.6 * plain[at]["score"] - 0.4 * nearest[at] for at in left]
        chosen.append(left[int(np.argmax(value))])
    expected = [plain[at]["image_id"] for at in chosen]
    wanted = {"among": among, "diversity": 0.4, "top_k": 3}
    pages = [results(shop, **wanted, offset=offset) for offset in (0, 3, 6)]
    assert [one for page in pages for one in ids(page)] == expected


def test_the_answer_tells_where_the_candidates_did_not_suffice(shop: httpx.Client) -> None:
    answer = shop.post("/v1/search", json={**QUERY, "group_by": "brand"}).json()
    assert answer["total"] == 21
    assert f"{len(answer['results'])} results instead of 40" in answer["warnings"][0]
    assert "first 20 candidates (candidates) of 21 images" in answer["warnings"][0]
    few = {**QUERY, "group_by": "brand", "category": ["dress"]}  # all of them are candidates
    assert shop.post("/v1/search", json=few).json()["warnings"] == []
    enough = shop.post("/v1/search", json={**QUERY, "group_by": "brand", "top_k": 3}).json()
    assert (len(enough["results"]), enough["warnings"]) == (3, [])


def test_unknown_attributes_are_told_with_the_one_that_was_meant(shop: httpx.Client) -> None:
    body = {"text": "is blue", "top_k": 1, "group_by": "brnd"}
    boost = {"attribute": "pattern", "weight": 1}
    warnings = shop.post("/v1/search", json={**body, "boost": boost}).json()["warnings"]
    assert warnings == [
        "no image has an attribute 'brnd'; did you mean brand?",
        "no image has a number as pattern",
    ]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"diversity": 1.5}, "diversity"),
    ({"diversity": True}, "diversity"),
    ({"near_duplicates": "remove"}, "near_duplicates"),
    ({"group_by": ""}, "group_by"),
    ({"attributes": {"brand": ["a"], "brand ": ["b"]}}, "attributes"),
    ({"boost": {"attribute": "price"}}, "boost.weight"),
    ({"boost": {"attribute": "price", "weight": 11}}, "boost.weight"),
    ({"boost": {"attribute": "price", "weight": 1, "by": 2}}, "boost.by"),
]


@pytest.mark.parametrize(("wanted", "field"), WRONG, ids=str)
def test_what_is_wrong_is_named(client: httpx.Client, wanted: dict[str, Any], field: str) -> None:
    wrong = problem(client.post("/v1/search", json={"text": "is blue", **wanted}), 422)
    assert fields(wrong) == [field]


def test_a_form_a_batch_and_both_clients_find_the_same(shop: httpx.Client, shop_url: str) -> None:
    wanted: dict[str, Any] = {
        "boost": {"attribute": "price", "weight": -0.2},
        "near_duplicates": "hide",
        "group_by": "brand",
        "diversity": 0.3,
        "text": "is blue",
        "top_k": 5,
        # All are candidates: of all images, which are nearly alike, rounding would leave one out
        "among": [f"new-{number}" for number in range(9)],
    }
    expected = ids(results(shop, **wanted))
    assert expected == ["new-0", "new-8"]
    form = {**wanted, "boost": '{"attribute": "price", "weight": -0.2}'}
    assert ids(ask(shop, **form).json()["results"]) == expected
    batch = shop.post("/v1/search/batch", json={"searches": [wanted]}).json()["items"]
    assert ids(batch[0]["response"]["results"]) == expected
    with Client(shop_url) as client:
        found = client.search(**wanted)
    assert [one.image_id for one in found.results] == expected

    async def asynchronous() -> list[str]:
        async with AsyncClient(shop_url) as client:
            return [one.image_id for one in (await client.search(**wanted)).results]

    assert asyncio.run(asynchronous()) == expected
