"""Several images in a search, over the real service and by the client."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from PIL import Image

from raycd import bundle
from raycd.client import AsyncClient, Client, ServiceError
from raycd.client.request import Search
from raycd.errors import DataError
from raycd.search.query import Query, Reference
from raycd.search.searcher import Searcher
from serve.args import DEFAULT
from serve.galleries import Galleries
from tests.serve.asking import ask, fields, png, problem

if TYPE_CHECKING:
    from serve.args import ServeArgs

WEIGHTS = {2: 1.0, 3: 2.5, 7: -0.5}  # of images by their numbers; 3 is named, the others are sent


@pytest.fixture(scope="module")
def expected(tiny_bundle: Any) -> Any:
    searcher = Searcher(bundle.load(tiny_bundle.folder))
    images = [
        Reference(tiny_bundle.images[2]),
        Reference(image_id="image-3", weight=2.5),
        Reference(tiny_bundle.images[7], weight=-0.5),
    ]
    [results] = searcher.search([Query(text="is blue", images=images, top_k=12)])
    return pytest.approx({result.image_id: result.score for result in results}, abs=1e-4)


def scores(answer: dict[str, Any]) -> dict[str, float]:
    return {result["image_id"]: result["score"] for result in answer["results"]}


def sent(tiny_bundle: Any) -> list[dict[str, Any]]:
    return [
        {"weight": weight, "image_id": f"image-{number}"}
        if number == 3
        else {"weight": weight, "image_base64": base64.b64encode(file).decode()}
        for number, weight in WEIGHTS.items()
        if (file := png(tiny_bundle.images[number]))
    ]


def test_json_a_form_and_a_batch_find_what_the_definition_says(
    client: httpx.Client, tiny_bundle: Any, expected: Any
) -> None:
    body = {"images": sent(tiny_bundle), "text": "is blue", "top_k": 12}
    assert scores(client.post("/v1/search", json=body).json()) == expected
    images = json.dumps(body["images"])
    assert scores(ask(client, text="is blue", top_k=12, images=images).json()) == expected
    items = client.post("/v1/search/batch", json={"searches": [body]}).json()["items"]
    assert scores(items[0]["response"]) == expected


def test_the_client_reads_files_of_several_images(
    service_url: str, tiny_bundle: Any, expected: Any, tmp_path: Any
) -> None:
    tiny_bundle.images[2].save(tmp_path / "two.png")
    search: Search = {
        "images": [
            {"image": tmp_path / "two.png"},
            {"image_id": "image-3", "weight": 2.5},
            {"image": png(tiny_bundle.images[7]), "weight": -0.5},
        ],
        "text": "is blue",
        "top_k": 12,
    }
    with Client(service_url, timeout=60) as client:
        answers = [client.search(**search)]
        batch = client.search_batch([search]).items[0].response
        with pytest.raises(DataError, match="cannot read the image"):
            client.search(images=[{"image": tmp_path / "three.png"}])
        with pytest.raises(DataError, match=r"images\.0: .*no image"):
            client.search(images=[{"weight": 2}])
        with pytest.raises(DataError, match="image and images"):
            client.search(image=png(tiny_bundle.images[2]), images=[{"image_id": "image-3"}])

    async def asynchronous() -> Any:
        async with AsyncClient(service_url, timeout=60) as client:
            return await client.search(**search)

    for answer in (*answers, batch, asyncio.run(asynchronous())):
        assert answer is not None
        assert {result.image_id: result.score for result in answer.results} == expected


def test_named_images_are_left_out_of_results_and_total(client: httpx.Client) -> None:
    names = [{"image_id": f"image-{number}", "weight": number - 2} for number in (1, 3, 5)]
    body = {"images": [*names, names[0]], "top_k": 12, "exclude_reference": True}
    answer = client.post("/v1/search", json=body).json()
    assert answer["total"] == len(answer["results"]) == 9
    assert not {"image-1", "image-3", "image-5"} & set(scores(answer))
    answer = client.post("/v1/search", json={**body, "category": ["dress"]}).json()
    assert answer["total"] == len(answer["results"]) == 3


WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "no image": ({"images": [{"weight": 2}]}, "images.0", "has no image"),
    "two ways": (
        {"images": [{"image_id": "image-1", "image_base64": "AAAA"}]},
        "images.0",
        "2 ways",
    ),
    "beside a single one": (
        {"image_id": "image-1", "images": [{"image_id": "image-2"}]},
        "",
        r"2 ways \(image_id, images\)",
    ),
    "too great a weight": (
        {"images": [{"image_id": "image-1", "weight": 11}]},
        "images.0.weight",
        "10",
    ),
    "only negatives": ({"images": [{"image_id": "image-1", "weight": -1}]}, "text", "above 0"),
    "an unknown field": (
        {"images": [{"image_id": "image-1", "wait": 1}]},
        "images.0.wait",
        "no such field",
    ),
    "no base64": ({"images": [{"image_base64": "?"}]}, "images.0.image_base64", "base64"),
    "no list": ({"images": "image-1", "text": "is blue"}, "images", "list"),
    "a text taken out": (
        {"images": [{"image_id": "image-1", "weight": -1}], "text": "is red", "text_weight": 0},
        "text_weight",
        "nothing else",
    ),
}


@pytest.mark.parametrize(("body", "field", "said"), WRONG.values(), ids=list(WRONG))
def test_what_is_wrong_is_named(
    client: httpx.Client, body: dict[str, Any], field: str, said: str
) -> None:
    wrong = problem(client.post("/v1/search", json=body), 422)
    assert fields(wrong) == [field]
    assert re.search(said, wrong["detail"])


def test_a_broken_or_unknown_image_is_told_by_its_place_or_name(client: httpx.Client) -> None:
    broken = {"image_base64": base64.b64encode(b"no image").decode()}
    images = [{"image_id": "image-1"}, broken]
    wrong = problem(client.post("/v1/search", json={"images": images}), 422)
    assert wrong["reason"] == "not_an_image"
    assert "images.1" in wrong["detail"]
    images = [{"image_id": "image-1"}, {"image_id": "nobody"}]
    wrong = problem(client.post("/v1/search", json={"images": images}), 404)
    assert "'nobody'" in wrong["detail"]
    form = ask(client, png(Image.new("RGB", (9, 9))), images=json.dumps(images))
    assert fields(problem(form, 422)) == ["image"]
    assert fields(problem(ask(client, images="[{"), 422)) == ["images"]


def test_more_images_than_the_limit_are_refused(client: httpx.Client) -> None:
    limit = client.get("/v1/info").json()["limits"]["images"]
    images = [{"image_id": "image-1"}] * (limit + 1)
    wrong = problem(client.post("/v1/search", json={"images": images}), 422)
    assert (wrong["limit"], fields(wrong)) == ("max_images", ["images"])
    assert client.post("/v1/search", json={"images": images[1:]}).status_code == 200


def test_each_image_counts_as_a_search_of_the_queue(
    start_replica: Callable[..., str], service_args: ServeArgs
) -> None:
    args = service_args.model_copy(update={"max_queue": 4, "max_images": 6, "max_batch": 3})
    started: list[Galleries] = []
    url = start_replica(args, "images", started.append)
    body = {"images": [{"image_id": "image-1"}] * 3, "text": "is blue"}
    with httpx.Client(base_url=url, timeout=60) as client:
        replica, let_go = started[0][DEFAULT], threading.Event()
        replica._model.submit(let_go.wait)
        with ThreadPoolExecutor(1) as threads:
            try:
                other = threads.submit(client.post, "/v1/search", json=body)
                while replica.searches.busy < 3:
                    time.sleep(0.01)
                assert client.post("/v1/search", json=body).status_code == 503
            finally:
                let_go.set()
            assert other.result().status_code == 200
        items = client.post("/v1/search/batch", json={"searches": [body] * 3}).json()["items"]
        assert [item["status"] for item in items] == [200, 200, 200]
        few = {**body, "images": body["images"][:1]}
        items = client.post("/v1/search/batch", json={"searches": [few] * 3}).json()["items"]
        assert [item["status"] for item in items] == [200, 200, 200]
        whole = {**body, "images": [{"image_id": "image-1"}] * 6}  # more than there are slots
        assert client.post("/v1/search", json=whole).status_code == 200
    with Client(url, retries=0) as patient, pytest.raises(ServiceError) as caught:
        patient.search(images=[{"image_id": "image-1"}] * 7)
    assert caught.value.status == 422
