"""What is malformed, too much or broken gets a problem document that names the limit and the
remedy.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image

from tests.serve.asking import ask, fields, png, problem, saved


@pytest.mark.parametrize(
    ("spoil", "reason", "limit"),
    [
        (lambda data: b"", "empty", None),
        (lambda data: b"hello", "not_an_image", "formats"),
        (lambda data: data[: len(data) // 2], "truncated", None),
        (lambda data: saved(Image.new("RGB", (64, 64)), "TIFF"), "not_an_image", "formats"),
        (lambda data: png(Image.new("RGB", (1, 1))), "too_small", "min_side"),
        (lambda data: png(Image.new("L", (8000, 7000))), "too_large", "max_pixels"),
    ],
)
def test_a_broken_image_is_refused_with_its_reason(
    client: httpx.Client, tiny_bundle: Any, spoil: Any, reason: str, limit: str | None
) -> None:
    body = problem(ask(client, spoil(png(tiny_bundle.images[0])), text="is blue"), 422)
    assert (body["reason"], body.get("limit")) == (reason, limit)


@pytest.mark.parametrize(
    ("asked", "field", "limit"),
    [
        ({"top_k": 0}, "top_k", None),
        ({"top_k": 201}, "top_k", "max_top_k"),
        ({"top_k": "many"}, "top_k", None),
        ({"top_k": 1.5}, "top_k", None),
        ({"offset": -1}, "offset", None),
        ({"offset": 1001}, "offset", "max_offset"),
        ({"text": "a" * 1001}, "text", "max_text"),
        ({"negative_text": "a" * 1001}, "negative_text", "max_text"),
        ({"image_weight": 11}, "image_weight", None),
        ({"text_weight": -1}, "text_weight", None),
        ({"text_weight": "nan"}, "text_weight", None),
        ({"colour": "blue"}, "colour", None),
        ({"category": "dress"}, "category", None),
        ({"attributes": {"colour": "red"}}, "attributes.colour", None),
        ({"attributes": {"price": {}}}, "attributes.price", None),
        ({"attributes": {"price": {"gt": "much"}}}, "attributes.price.gt", None),
        ({"attributes": {"price": {"gt": True}}}, "attributes.price.gt", None),
        ({"attributes": {"price": {"above": 3}}}, "attributes.price.above", None),
        ({"attributes": {"price": {"not": "red"}}}, "attributes.price.not", None),
        ({"image_base64": "###"}, "image_base64", None),
        ({"exact": "perhaps"}, "exact", None),
        ({"text": 7}, "text", None),
        ({"image_id": "x" * 513}, "image_id", None),
        ({"image_id": ""}, "image_id", None),
        ({"text_weight": 0}, "text_weight", None),
        ({"image_id": "image-1", "text": "", "image_weight": 0}, "image_weight", None),
    ],
)
def test_a_wrong_field_is_named_and_so_is_the_limit(
    client: httpx.Client, asked: dict[str, Any], field: str, limit: str | None
) -> None:
    body = problem(client.post("/v1/search", json={"text": "is blue", **asked}), 422)
    assert fields(body) == [field]
    assert body.get("limit") == limit
    if limit:
        assert limit in body["detail"]


def test_a_search_needs_an_image_or_a_text_and_one_image_only(
    client: httpx.Client, tiny_bundle: Any
) -> None:
    assert (
        "neither an image nor a text" in problem(client.post("/v1/search", json={}), 422)["detail"]
    )
    assert (
        "neither an image nor a text"
        in problem(client.post("/v1/search", json={"text": " \n"}), 422)["detail"]
    )
    two = {"image_id": "image-1", "image_base64": "aGk="}
    assert "2 ways" in problem(client.post("/v1/search", json=two), 422)["detail"]
    assert fields(problem(ask(client, png(tiny_bundle.images[0]), image_id="image-1"), 422)) == [
        "image"
    ]
    assert fields(
        problem(client.post("/v1/search", data={"image": "not a file", "text": "x"}), 422)
    ) == ["image"]
    files = {"text": ("text.txt", b"is blue", "text/plain")}
    assert fields(problem(client.post("/v1/search", files=files), 422)) == ["text"]
    assert fields(problem(ask(client, text="x", attributes="{"), 422)) == ["attributes"]


def test_what_is_not_there_or_not_allowed_is_told(client: httpx.Client) -> None:
    assert (
        "nobody" in problem(client.post("/v1/search", json={"image_id": "nobody"}), 404)["detail"]
    )
    body = problem(client.post("/v1/search", json={"image_url": "https://example.org/a.jpg"}), 403)
    assert "image_url" in body["detail"]
    problem(client.get("/v2/search"), 404)
    problem(client.get("/v1/search"), 405)


def test_a_body_that_is_not_what_it_says_is_refused(client: httpx.Client) -> None:
    def send(content: bytes, kind: str) -> httpx.Response:
        return client.post("/v1/search", content=content, headers={"content-type": kind})

    problem(send(b"{", "application/json"), 400)
    problem(send(b"[" * 100_000, "application/json"), 400)
    problem(send(b"\xff\xfe", "application/json"), 400)
    problem(send(b"[1]", "application/json"), 422)
    problem(send(b"is blue", "text/plain"), 415)
    problem(client.post("/v1/search", content=b"{}"), 415)
    for kind in ("multipart/form-data; boundary=x", "multipart/form-data"):
        problem(send(b"--y\r\nnonsense", kind), 400)
    form = b'--x\r\nContent-Disposition: form-data; name="text"\r\n\r\nis \xff blue\r\n--x--\r\n'
    problem(send(form, "multipart/form-data; boundary=x; charset=undefined"), 400)


def test_filters_are_bounded_and_so_is_what_is_said_of_many_wrong_fields(
    client: httpx.Client,
) -> None:
    many = [f"category {number}" for number in range(101)]
    body = problem(client.post("/v1/search", json={"text": "x", "category": many}), 422)
    assert body["limit"] == "max_filters"
    assert (
        client.post("/v1/search", json={"text": "x", "category": many[:100]}).json()["results"]
        == []
    )
    body = problem(client.post("/v1/search", json=dict.fromkeys(many)), 422)
    assert len(body["errors"]) == 20


def test_large_requests_are_refused_whatever_they_declare(client: httpx.Client) -> None:
    body = problem(ask(client, b"x" * 2_000_001, text="is blue"), 413)
    assert body["limit"] == "max_body_bytes"

    def chunks() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(3):
            yield b"x" * 1_000_000

    headers = {"content-type": "multipart/form-data; boundary=x"}
    problem(client.post("/v1/search", content=chunks(), headers=headers), 413)


def test_a_large_request_is_refused_before_its_body_is_sent(service_url: str) -> None:
    address = urlsplit(service_url)
    assert address.hostname is not None
    assert address.port is not None
    with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
        connection.sendall(
            b"POST /v1/search HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 3000000000\r\n\r\n"
        )
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert (
        json.loads(answer.partition(b"\r\n\r\n")[2].split(b"\r\n")[-1] or b"{}").get("status", 413)
        == 413
    )
