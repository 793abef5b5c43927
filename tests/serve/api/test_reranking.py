"""A bundle whose head re-ranks, over HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from raycd.client import Client
from raycd.model.fusion.dcnet import DcNet
from tests.serve.asking import ask, fields, png, problem

ASKED = {"image_id": "image-4", "text": "is blue", "top_k": 12}


@pytest.fixture(scope="module")
def dcnet_bundle(bundle_with_head: Callable[[str], Path]) -> Path:
    return bundle_with_head("dcnet")


@pytest.fixture(scope="module")
def reranking_url(start_replica: Callable[..., str], service_args: Any, dcnet_bundle: Path) -> str:
    args = {"bundle": str(dcnet_bundle), "max_rerank_depth": 50}
    return start_replica(service_args.model_copy(update=args), "dcnet")


@pytest.fixture
def reranking(reranking_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=reranking_url, timeout=60) as client:
        yield client


def results(response: httpx.Response) -> list[tuple[str, float | None]]:
    assert response.status_code == 200, response.text
    return [(found["image_id"], found["rerank_score"]) for found in response.json()["results"]]


def test_the_first_results_come_in_the_heads_order_and_0_turns_it_off(
    reranking: httpx.Client, tiny_bundle: Any
) -> None:
    found = results(reranking.post("/v1/search", json=ASKED))
    plain = results(reranking.post("/v1/search", json={**ASKED, "rerank_depth": 0}))
    assert sorted(found) != sorted(plain)
    assert [image_id for image_id, _ in found] != [image_id for image_id, _ in plain]
    assert {score for _, score in plain} == {None}
    scores = [score for _, score in found if score is not None]
    assert len(scores) == 12
    assert scores == sorted(scores, reverse=True)
    some = results(reranking.post("/v1/search", json={**ASKED, "rerank_depth": 3}))
    assert some[3:] == plain[3:]
    assert sum(score is not None for _, score in some) == 3
    form = results(
        ask(reranking, png(tiny_bundle.images[4]), text="is blue", rerank_depth=3, top_k=12)
    )
    assert [image_id for image_id, _ in form] == [image_id for image_id, _ in some]


def test_its_time_is_in_the_answer_and_in_server_timing(reranking: httpx.Client) -> None:
    response = reranking.post("/v1/search", json=ASKED)
    steps = ["read", "decode", "wait", "encode", "search", "rerank", "total"]
    timings = response.json()["timings"]
    assert list(timings) == steps
    assert timings["rerank"] > 0
    assert sum(timings[step] for step in steps[:-1]) <= timings["total"] + 0.1
    assert "rerank;dur=" in response.headers["server-timing"]
    off = reranking.post("/v1/search", json={**ASKED, "rerank_depth": 0})
    assert "rerank" not in off.headers["server-timing"]


def test_info_says_how_deep_and_what_the_limit_is(reranking: httpx.Client) -> None:
    info = reranking.get("/v1/info").json()
    assert (info["model"]["head"], info["model"]["rerank_depth"]) == ("dcnet", 50)
    assert info["limits"]["rerank_depth"] == 50
    body = problem(reranking.post("/v1/search", json={**ASKED, "rerank_depth": 51}), 422)
    assert (body["limit"], fields(body)) == ("max_rerank_depth", ["rerank_depth"])
    for wrong in (-1, True, "many"):
        body = problem(reranking.post("/v1/search", json={**ASKED, "rerank_depth": wrong}), 422)
        assert fields(body) == ["rerank_depth"]


def test_a_search_that_is_not_re_ranked_says_why(
    reranking: httpx.Client, client: httpx.Client
) -> None:
    half = {"text": "is blue", "rerank_depth": 5}
    assert reranking.post("/v1/search", json=half).json()["warnings"] == [
        "rerank_depth changes nothing: only searches of one image and a text are re-ranked"
    ]
    assert reranking.post("/v1/search", json={"text": "is blue"}).json()["warnings"] == []
    other = client.post("/v1/search", json={**ASKED, "rerank_depth": 5}).json()
    assert other["warnings"] == ["rerank_depth changes nothing: the head clip_cd re-ranks nothing"]
    assert client.post("/v1/search", json={**ASKED, "rerank_depth": 0}).json()["warnings"] == []


def test_each_search_of_a_batch_has_its_own_depth(reranking: httpx.Client) -> None:
    searches = [{**ASKED, "rerank_depth": depth} for depth in (0, 3)]
    items = reranking.post("/v1/search/batch", json={"searches": searches}).json()["items"]
    for search, item in zip(searches, items, strict=True):
        alone = reranking.post("/v1/search", json=search)
        assert [found["image_id"] for found in item["response"]["results"]] == [
            image_id for image_id, _ in results(alone)
        ]


def test_the_client_asks_for_it(reranking_url: str) -> None:
    with Client(reranking_url) as client:
        found = client.search(image_id="image-4", text="is blue", top_k=12, rerank_depth=2)
        plain = client.search(image_id="image-4", text="is blue", top_k=12, rerank_depth=0)
    assert [result.rerank_score is None for result in found.results] == [False] * 2 + [True] * 10
    assert [r.image_id for r in found.results[2:]] == [r.image_id for r in plain.results[2:]]


def test_an_answer_that_would_come_too_late_comes_without_it_and_says_so(
    start_replica: Callable[..., str],
    service_args: Any,
    dcnet_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quick = DcNet.rerank

    def slow(*given: Any) -> torch.Tensor:
        time.sleep(2.5)
        return quick(*given)

    monkeypatch.setattr(DcNet, "rerank", slow)
    args = {"bundle": str(dcnet_bundle), "timeout_s": 4.5}
    url = start_replica(service_args.model_copy(update=args), "slow")  # its canary takes as long
    with httpx.Client(base_url=url, timeout=60) as client:
        response = client.post("/v1/search", json=ASKED)
        plain = client.post("/v1/search", json={**ASKED, "rerank_depth": 0})
        assert results(response) == results(plain)
        assert response.json()["warnings"] == [
            "the results are not re-ranked: the answer would have come too late (timeout_s)"
        ]
        assert response.json()["timings"]["rerank"] < 100
        assert plain.json()["warnings"] == []
