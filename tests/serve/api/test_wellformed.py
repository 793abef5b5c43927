"""Requests that no route could understand, or would understand as something else than was meant."""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import struct
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.serve.asking import fields, png, problem


@pytest.fixture(scope="module")
def live(live_url: str) -> Any:
    with httpx.Client(base_url=live_url, timeout=60) as client:
        yield client


def raw(
    url: str, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    """Send a request whose path goes out as it is."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    connection.request(method, f"{parts.path}{path}", body, headers or {})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content


def form(image: Any, **others: str) -> dict[str, Any]:
    return {
        "files": {
            "image": ("photo.png", png(image), "image/png"),
            **{k: (None, v) for k, v in others.items()},
        }
    }


@pytest.mark.parametrize(
    "path", ["caf%E9", "caf%E8", "%FF", "%ED%A0%BD", "a%C3", "ok?min_version=0&x=%E9"]
)
def test_an_address_that_is_not_utf8_is_refused_and_replaces_nothing(
    live_url: str, live: httpx.Client, tiny_bundle: Any, path: str
) -> None:
    before = live.get("v1/gallery").json()["total"]
    body = png(tiny_bundle.images[0])
    for method, folder in (("PUT", "gallery"), ("DELETE", "gallery"), ("GET", "images")):
        status, content = raw(
            live_url, method, f"/v1/{folder}/{path}", body, {"Content-Type": "image/png"}
        )
        assert status == 400
        assert "not UTF-8" in json.loads(content)["detail"]
    for query in ("category=caf%E9", "attribute=colour:%E9"):
        assert raw(live_url, "GET", f"/v1/gallery?{query}")[0] == 400
    assert live.get("v1/gallery").json()["total"] == before


def test_an_id_may_hold_the_replacement_character_itself(
    live: httpx.Client, tiny_bundle: Any
) -> None:
    assert (
        live.put("v1/gallery/caf%EF%BF%BD", **form(tiny_bundle.images[0])).json()["image_id"]
        == "caf\ufffd"
    )
    assert live.delete("v1/gallery/caf%EF%BF%BD").status_code == 200


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="text"\r\n\r\ncaf\xe9\r\n--x--\r\n',
        ),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="te\xe9"\r\n\r\na\r\n--x--\r\n',
        ),
        ("application/x-www-form-urlencoded", b"text=caf%E9"),
        ("application/x-www-form-urlencoded", b"text=caf\xe9"),
        ("application/json", b'{"text": "caf\xe9"}'),
        ("application/json", b'{"text": "\xed\xa0\xbd"}'),
        ("application/json", rb'{"text": "\ud83d"}'),
        ("application/json", rb'{"\ud83d": 1}'),
    ],
)
def test_a_body_that_is_not_utf8_is_refused(client: httpx.Client, kind: str, body: bytes) -> None:
    problem(client.post("/v1/search", content=body, headers={"content-type": kind}), 400)


def test_a_form_in_a_charset_of_its_own_is_read(client: httpx.Client) -> None:
    body = (
        'text=x\r\n--x\r\nContent-Disposition: form-data; name="category"\r\n\r\ncafé\r\n--x--\r\n'
    )
    content = '--x\r\nContent-Disposition: form-data; name="text"\r\n\r\n' + body
    for charset in ("latin-1", "utf-8"):
        kind = {"content-type": f'multipart/form-data; charset={charset}; boundary="x"'}
        answer = client.post("/v1/search", content=content.encode(charset), headers=kind)
        assert answer.json()["warnings"] == ["no image is in the category 'café'"]
    kind = {"content-type": "multipart/form-data; charset=no; boundary=x"}
    problem(client.post("/v1/search", content=content.encode(), headers=kind), 400)


@pytest.mark.parametrize(
    "path",
    [
        "/healthz",
        "/readyz",
        "/docs",
        "/openapi.json",
        "/",
        "/v1/info",
        "/v1/gallery",
        "/v1/images/image-1",
    ],
)
def test_head_is_get_without_its_body(client: httpx.Client, path: str) -> None:
    got, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (got.status_code, b"")
    assert head.headers["content-type"] == got.headers["content-type"]


def test_head_of_what_is_not_there_is_404_and_of_what_only_takes_a_body_405(
    client: httpx.Client,
) -> None:
    assert client.head("/v1/images/no-such").status_code == 404
    answer = client.head("/v1/search")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_405_names_the_methods_of_all_routes_of_the_path(live: httpx.Client) -> None:
    assert live.post("v1/gallery/x").headers["allow"] == "DELETE, PUT"
    assert live.put("v1/info").headers["allow"] == "GET, HEAD"
    assert live.post("web/app.js").headers["allow"] == "GET, HEAD"


def test_parameters_of_writes_and_searches_are_looked_at_too(live: httpx.Client) -> None:
    assert (
        "min_version?"
        in problem(live.post("v1/search?min_verison=1", json={"text": "a"}), 422)["detail"]
    )
    problem(live.delete("v1/gallery/x?missing_ok=1"), 422)
    problem(
        live.post("v1/gallery:import?x=1", headers={"content-type": "application/x-ndjson"}), 422
    )


@pytest.mark.parametrize("name", ["top_k", "offset", "image_weight", "text_weight"])
@pytest.mark.parametrize("value", [True, False])
def test_true_is_no_number(client: httpx.Client, name: str, value: bool) -> None:
    body = problem(client.post("/v1/search", json={"text": "a", name: value}), 422)
    assert fields(body) == [name]
    assert f"got {str(value).lower()}, expected a number" in body["detail"]


def test_a_form_field_that_repeats_is_refused(client: httpx.Client) -> None:
    for content in (
        {"files": [("text", (None, "a")), ("text", (None, "b"))]},
        {"data": {"text": ["a", "b"]}},
    ):
        assert (
            "text: is given more than once"
            in problem(client.post("/v1/search", **content), 422)["detail"]
        )


def test_a_compressed_body_is_told_by_its_header(client: httpx.Client, live: httpx.Client) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    content = gzip.compress(b'{"text": "a"}')
    for answer in (
        client.post("/v1/search", content=content, headers=headers),
        live.post(
            "v1/gallery:import",
            content=content,
            headers=headers | {"content-type": "application/x-ndjson"},
        ),
        live.put("v1/gallery/x", content=content, headers=headers),
    ):
        assert "Content-Encoding: gzip" in problem(answer, 415)["detail"]


def test_json_without_its_content_type_is_told_so(client: httpx.Client) -> None:
    kind = {"content-type": "application/x-www-form-urlencoded"}  # what curl -d sends
    said = problem(client.post("/v1/search", content=b'{"text": "a"}', headers=kind), 415)
    assert "send the header Content-Type: application/json" in said["detail"]


def part(disposition: str, body: bytes) -> bytes:
    return f"--x\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode() + body + b"\r\n"


def test_a_browsers_form_without_a_chosen_file_is_a_search_by_its_text(
    client: httpx.Client,
) -> None:
    content = (
        part('name="image"; filename=""', b"") + part('name="text"', b"is blue") + b"--x--\r\n"
    )
    kind = {"content-type": "multipart/form-data; boundary=x"}
    assert client.post("/v1/search", content=content, headers=kind).status_code == 200
    empty = part('name="image"; filename="photo.png"', b"") + b"--x--\r\n"
    assert problem(client.post("/v1/search", content=empty, headers=kind), 422)["reason"] == "empty"


def test_a_file_whose_name_is_in_the_extended_form_alone_is_told_so(
    client: httpx.Client, tiny_bundle: Any
) -> None:
    content = (
        part("name=\"image\"; filename*=UTF-8''photo.png", png(tiny_bundle.images[0]))
        + b"--x--\r\n"
    )
    kind = {"content-type": "multipart/form-data; boundary=x"}
    assert (
        "filename* alone is not read"
        in problem(client.post("/v1/search", content=content, headers=kind), 422)["detail"]
    )


@pytest.mark.parametrize("spell", [
    lambda plain: plain + "\n",
    lambda plain: "\r\n".join(plain[i : i + 76] for i in range(0, len(plain), 76)),
    lambda plain: f"data:image/png;base64,{plain}",
    lambda plain: f" DATA:image/png;name=a;BASE64,{plain}\n",
])  # fmt: skip
def test_base64_may_have_lines_and_a_data_url_any_case(
    client: httpx.Client, tiny_bundle: Any, spell: Any
) -> None:
    plain = base64.b64encode(png(tiny_bundle.images[0])).decode()
    assert client.post("/v1/search", json={"image_base64": spell(plain)}).status_code == 200


@pytest.mark.parametrize(
    ("text", "said"),
    [("aGV$bG8=", "is not base64"), ("data:image/png,abc", "without base64"), ("é", "not")],
)
def test_what_is_not_base64_is_refused(client: httpx.Client, text: str, said: str) -> None:
    assert said in problem(client.post("/v1/search", json={"image_base64": text}), 422)["detail"]


@pytest.mark.parametrize(
    ("feature", "said"),
    [
        ([1.0] * 5, "got 5 numbers, expected the 96 of this encoder"),
        (
            base64.b64encode(struct.pack("<95f", *[1.0] * 95)).decode(),
            "which are 95 numbers of float32",
        ),
        (base64.b64encode(bytes(383)).decode(), "got 383 bytes, which are 95.75 numbers"),
        ([0.0] * 96, "got only zeros"),
        ([1e300] * 96, "not finite"),
        ([True] * 96, "feature"),
    ],
)
def test_what_is_wrong_with_a_feature_is_told(live: httpx.Client, feature: Any, said: str) -> None:
    encoder = live.get("v1/info").json()["model"]["fingerprint"]
    answer = live.put("v1/gallery/wrong", json={"feature": feature, "encoder": encoder})
    assert said in problem(answer, 422)["detail"]


@pytest.mark.parametrize("image_id", [".", ".."])
def test_an_id_that_no_address_leads_to_cannot_be_added(
    live_url: str, live: httpx.Client, tiny_bundle: Any, image_id: str
) -> None:
    picture = png(tiny_bundle.images[0])
    line = json.dumps({"image_id": image_id, "image_base64": base64.b64encode(picture).decode()})
    said = live.post(
        "v1/gallery:import", content=line, headers={"content-type": "application/x-ndjson"}
    ).json()
    assert (said["status"], said["problem"]["errors"][0]["field"]) == (422, "image_id")
    quoted = image_id.replace(".", "%2E")
    assert (
        raw(live_url, "PUT", f"/v1/gallery/{quoted}", picture, {"Content-Type": "image/png"})[0]
        == 422
    )
    assert raw(live_url, "DELETE", f"/v1/gallery/{quoted}")[0] == 404, (
        "what is there already can be removed"
    )


def test_a_byte_order_mark_before_json_is_no_part_of_it(
    live: httpx.Client, tiny_bundle: Any
) -> None:
    picture = base64.b64encode(png(tiny_bundle.images[0])).decode()
    line = json.dumps({"image_id": "marked", "image_base64": picture}).encode()
    kind = {"content-type": "application/x-ndjson"}
    assert (
        live.post("v1/gallery:import", content=b"\xef\xbb\xbf" + line, headers=kind).json()[
            "status"
        ]
        == 201
    )
    content = b'\xef\xbb\xbf{"text": "a"}'
    assert (
        live.post(
            "v1/search", content=content, headers={"content-type": "application/json"}
        ).status_code
        == 200
    )
    assert live.delete("v1/gallery/marked").status_code == 200


def test_every_reference_of_the_description_resolves(client: httpx.Client) -> None:
    described = client.get("/openapi.json").json()

    def look(node: Any) -> None:
        if isinstance(node, dict):
            if isinstance(reference := node.get("$ref"), str):
                target = described
                for step in reference.removeprefix("#/").split("/"):
                    assert step in target, reference
                    target = target[step]
            for child in node.values():
                look(child)
        elif isinstance(node, list):
            for child in node:
                look(child)

    look(described)
    assert "FieldError" in described["components"]["schemas"]


def test_pictures_are_not_for_pages_of_other_origins(client: httpx.Client) -> None:
    assert client.get("/v1/images/image-1").headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"category": ["dres"]}, ["no image is in the category 'dres'; did you mean dress?"]),
        ({"category": ["dress", "hat"]}, ["no image is in the category 'hat'"]),
        (
            {"attributes": {"patern": ["striped"]}},
            ["no image has an attribute 'patern'; did you mean pattern?"],
        ),
        (
            {"attributes": {"pattern": ["stripy"]}},
            ["no image has 'stripy' as pattern; did you mean striped?"],
        ),
        ({"attributes": {"pattern": ["striped"]}}, []),
        ({"attributes": {"pattern": {"not": ["plain"]}}}, ["no image has 'plain' as pattern"]),
        ({"attributes": {"pattern": {"gte": 3}}}, ["no image has a number as pattern"]),
        ({"category": [f"{n}{'x' * 400}" for n in range(9)]}, None),
    ],
)
def test_a_filter_that_no_image_has_is_warned_of(
    client: httpx.Client, asked: Any, said: list[str] | None
) -> None:
    answer = client.post("/v1/search", json={"text": "is blue", **asked}).json()
    if said is None:
        assert len(answer["warnings"]) == 6
        assert answer["warnings"][-1] == "4 more filters are unknown"
    else:
        assert answer["warnings"] == said
    if any(isinstance(wanted, dict) for wanted in asked.get("attributes", {}).values()):
        return  # a page of the gallery has no conditions
    pairs = [
        f"{name}:{value}"
        for name, values in asked.get("attributes", {}).items()
        for value in values
    ]
    page = client.get(
        "/v1/gallery", params={"category": asked.get("category", []), "attribute": pairs}
    ).json()
    assert page["warnings"] == answer["warnings"]
