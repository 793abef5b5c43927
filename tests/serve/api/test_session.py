"""Sessions of edits over the real service: a search goes on from an earlier answer's history."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from raycd import bundle
from raycd.client import AsyncClient, Client
from raycd.errors import DataError
from raycd.search import history
from raycd.search.query import History, Query
from raycd.search.searcher import Searcher
from tests.serve.asking import ask, fields, problem

if TYPE_CHECKING:
    from serve.args import ServeArgs

FIRST: dict[str, Any] = {"image_id": "image-2", "text": "is blue", "top_k": 12, "session": True}


@pytest.fixture(scope="module")
def searcher(tiny_bundle: Any) -> Searcher:
    return Searcher(bundle.load(tiny_bundle.folder))


def scores(answer: dict[str, Any]) -> Any:
    return {one["image_id"]: one["score"] for one in answer["results"]}


def expected(searcher: Searcher, **second: Any) -> Any:
    """Return the scores of a search that goes on from FIRST."""
    image = searcher.own.find("image-2")
    assert image is not None
    before = History(image.feature_D, ("is blue",))
    [results] = searcher.search([Query(**second, history=before, top_k=12)])
    return pytest.approx({one.image_id: one.score for one in results}, abs=2e-3)  # of float16


def test_a_search_goes_on_with_a_text_alone_and_with_a_result(
    client: httpx.Client, searcher: Searcher
) -> None:
    first = client.post("/v1/search", json=FIRST).json()
    asked = {"reference": first["history"], "text": "has a belt", "top_k": 12}
    second = client.post("/v1/search", json=asked).json()
    assert scores(second) == expected(searcher, text="has a belt")
    assert second["history"] not in ("", first["history"])
    with_result = {**asked, "image_id": "image-7"}
    found = scores(client.post("/v1/search", json=with_result).json())
    assert found == expected(searcher, text="has a belt", image_id="image-7")
    assert scores(ask(client, **with_result).json()) == pytest.approx(found)
    batch = client.post("/v1/search/batch", json={"searches": [with_result]}).json()["items"]
    assert scores(batch[0]["response"]) == pytest.approx(found)
    alone = client.post("/v1/search", json={"reference": first["history"], "top_k": 12}).json()
    assert scores(alone) == pytest.approx(scores(first), abs=2e-3)


def test_weights_of_0_take_out_what_a_history_has_and_never_all_of_it(
    client: httpx.Client, searcher: Searcher
) -> None:
    token = client.post("/v1/search", json=FIRST).json()["history"]
    asked = {"reference": token, "image_weight": 0, "top_k": 12}
    found = scores(client.post("/v1/search", json=asked).json())
    assert found == expected(searcher, image_weight=0)
    said = client.post("/v1/search", json={"text": "is red", "session": True}).json()["history"]
    for path in ("/v1/search", "/v1/embed"):
        refused = problem(client.post(path, json={"reference": said, "text_weight": 0}), 422)
        assert "nothing is left of the query" in refused["detail"]
        assert "more weight" in refused["detail"]


def test_only_who_asks_for_it_gets_a_history(client: httpx.Client) -> None:
    assert client.post("/v1/search", json={**FIRST, "session": False}).json()["history"] == ""


def test_every_replica_and_a_later_service_know_what_came_before(
    client: httpx.Client, start_replica: Callable[..., str], service_args: ServeArgs
) -> None:
    token = client.post("/v1/search", json=FIRST).json()["history"]
    body = {"reference": token, "text": "has a belt", "top_k": 12}
    here = scores(client.post("/v1/search", json=body).json())
    with httpx.Client(base_url=start_replica(service_args, "later"), timeout=60) as later:
        assert scores(later.post("/v1/search", json=body).json()) == pytest.approx(here, abs=1e-5)


def test_a_history_of_another_model_or_of_nobody_is_refused(
    client: httpx.Client,
    start_replica: Callable[..., str],
    service_args: ServeArgs,
    other_bundle: Path,
) -> None:
    token = client.post("/v1/search", json=FIRST).json()["history"]
    args = service_args.model_copy(update={"bundle": str(other_bundle)})
    with httpx.Client(base_url=start_replica(args, "other"), timeout=60) as other:
        said = problem(other.post("/v1/search", json={"reference": token}), 409)
        assert "another model" in said["detail"]
        assert "begin anew" in said["detail"]
    for wrong in ("x", token[:-4], token + "AAAA"):
        said = problem(client.post("/v1/search", json={"reference": wrong, "text": "x"}), 422)
        assert "not the history of an answer" in said["detail"]
    assert fields(problem(client.post("/v1/search", json={"reference": ""}), 422)) == ["reference"]


def test_the_client_goes_on_from_an_answer(client: httpx.Client, service_url: str) -> None:
    token = client.post("/v1/search", json=FIRST).json()["history"]
    body = {"reference": token, "text": "has a belt", "top_k": 3}
    ids = list(scores(client.post("/v1/search", json=body).json()))
    with Client(service_url, timeout=60) as blocking:
        first = blocking.search(image_id="image-2", text="is blue", session=True)
        second = blocking.search(reference=first, text="has a belt", top_k=3)
        assert [one.image_id for one in second.results] == ids
        query = blocking.embed(reference=first, text="has a belt").query
        assert query == pytest.approx(blocking.embed(reference=token, text="has a belt").query)
        without = blocking.search(text="is blue")
        with pytest.raises(DataError, match="session=True"):
            blocking.search(reference=without, text="has a belt")

    async def asynchronous() -> list[str]:
        async with AsyncClient(service_url, timeout=60) as waiting:
            first = await waiting.search(image_id="image-2", text="is blue", session=True)
            second = await waiting.search(reference=first, text="has a belt", top_k=3)
            return [one.image_id for one in second.results]

    assert asyncio.run(asynchronous()) == ids


def test_a_history_is_short(searcher: Searcher, client: httpx.Client) -> None:
    token = client.post("/v1/search", json=FIRST).json()["history"]
    dim = searcher.bundle.encoder.dim
    assert len(token) < 3 * dim + 40
    fingerprint = searcher.bundle.manifest.encoder.fingerprint
    assert history.unpack(token, fingerprint, dim, 1000).texts == ("is blue",)
