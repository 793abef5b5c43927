"""Parameters and fields that nobody knows are refused, with the ones that were meant."""

from __future__ import annotations

import httpx
import pytest

from tests.serve.asking import fields, problem


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (
            "/v1/gallery?categroy=dress",
            "categroy: there is no such parameter; did you mean category?",
        ),
        ("/v1/gallery?limit=1&limit=2", "limit: is given 2 times: give it once"),
        ("/v1/images/image-1?siez=original", "did you mean size?"),
        ("/v1/info?x=1", "x: there is no such parameter"),
    ],
)
def test_a_parameter_that_nobody_knows_is_refused_with_the_one_that_was_meant(
    client: httpx.Client, path: str, said: str
) -> None:
    assert said in problem(client.get(path), 422)["detail"]


def test_a_field_that_nobody_knows_is_refused_with_the_one_that_was_meant(
    client: httpx.Client,
) -> None:
    body = problem(client.post("/v1/search", json={"text": "a", "top-k": 3, "x" * 5000: 1}), 422)
    assert "top-k: there is no such field; did you mean top_k?" in body["detail"]
    assert len(body["detail"]) < 1000


@pytest.mark.parametrize("name", ["query", "path", "body", "header"])
def test_a_name_of_http_is_a_name_like_any_other(client: httpx.Client, name: str) -> None:
    body = problem(client.post("/v1/search", json={name: "red dress"}), 422)
    assert fields(body) == [name]
    assert fields(problem(client.get("/v1/info", params={name: "red"}), 422)) == [name]
    wrong = {"text": "a", "attributes": {name: ""}}
    assert fields(problem(client.post("/v1/search", json=wrong), 422)) == [f"attributes.{name}"]


def test_a_field_within_another_is_not_taken_for_one_of_the_request(client: httpx.Client) -> None:
    body = {"text": "a", "boost": {"attributes": "price", "weight": 1}}
    said = problem(client.post("/v1/search", json=body), 422)["detail"]
    assert "boost.attributes: there is no such field" in said
    assert "did you mean" not in said
