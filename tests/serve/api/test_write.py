"""The live gallery over HTTP: what is put is found, what is deleted is gone."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.serve.asking import ask, fields, png, problem


@pytest.fixture(scope="module")
def live(live_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live_url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def encoder(live: httpx.Client) -> str:
    return str(live.get("/v1/info").json()["model"]["fingerprint"])


def noise(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    return png(Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)))


def put(live: httpx.Client, image_id: str, data: bytes, **form: Any) -> httpx.Response:
    return live.put(
        f"/v1/gallery/{image_id}", files={"image": ("a.png", data, "image/png")}, data=form
    )


def found(live: httpx.Client, data: bytes, version: int, **form: Any) -> list[str]:
    """Return the ids that a search by this picture finds at this version."""
    files: dict[str, Any] = {name: (None, str(value)) for name, value in form.items()}
    files["image"] = "a.png", data
    answer = live.post("/v1/search", params={"min_version": version}, files=files)
    assert answer.status_code == 200, answer.text
    assert answer.json()["index"]["version"] >= version
    return [result["image_id"] for result in answer.json()["results"]]


def ids(live: httpx.Client, version: int) -> list[str]:
    page = live.get(
        "/v1/gallery", params={"limit": 40, "newest": True, "min_version": version}
    ).json()
    return [item["image_id"] for item in page["items"]]


def text(feature_D: NDArray[np.floating[Any]]) -> str:
    return base64.b64encode(feature_D.astype("<f4").tobytes()).decode()


def test_a_picture_is_added_found_shown_and_removed(live: httpx.Client) -> None:
    data = noise(1)
    written = put(
        live, "shoes%2Fred 1", data, category=["shoes", "sale"], attributes='{"colour": "red"}'
    )
    assert written.status_code == 201
    version = written.json()["version"]
    assert written.json() == {"image_id": "shoes/red 1", "version": version, "created": True}
    assert found(live, data, version)[0] == "shoes/red 1"
    assert found(live, data, version, category="shoes") == ["shoes/red 1"]
    assert found(live, data, version, attributes='{"colour": ["red"]}') == ["shoes/red 1"]
    [item] = live.get("/v1/gallery", params={"category": "shoes"}).json()["items"]
    assert (item["category"], item["attributes"]) == ("shoes", {"colour": "red"})
    assert live.get(f"/{item['thumbnail']}").headers["content-type"] == "image/jpeg"
    assert live.get("/v1/images/shoes/red 1", params={"size": "original"}).content == data
    assert live.get("/v1/info").json()["categories"]["shoes"] == 1

    gone = live.delete("/v1/gallery/shoes%2Fred 1")
    assert (gone.status_code, gone.json()["version"]) == (200, version + 1)
    assert "shoes/red 1" not in found(live, data, version + 1)
    assert "shoes/red 1" not in ids(live, version + 1)
    problem(live.get("/v1/images/shoes/red 1"), 404)
    problem(ask(live, image_id="shoes/red 1", text="is blue"), 404)
    problem(live.delete("/v1/gallery/shoes%2Fred 1"), 404)
    assert "shoes" not in live.get("/v1/info").json()["categories"]


def test_a_put_replaces_all_that_was_there(live: httpx.Client) -> None:
    first, second = noise(2), noise(3)
    put(live, "replaced", first, category="hat", attributes='{"colour": "red"}')
    written = put(live, "replaced", second)
    assert (written.status_code, written.json()["created"]) == (200, False)
    version = written.json()["version"]
    assert found(live, second, version)[0] == "replaced"
    assert ids(live, version).count("replaced") == 1
    assert live.get("/v1/images/replaced", params={"size": "original"}).content == second
    [item] = [
        item
        for item in live.get("/v1/gallery?newest=true").json()["items"]
        if item["image_id"] == "replaced"
    ]
    assert (item["category"], item["attributes"]) == ("", {})
    live.delete("/v1/gallery/replaced")


def test_a_feature_is_added_without_its_picture(
    live: httpx.Client, encoder: str, tiny_bundle: Any
) -> None:
    from raycd import bundle

    feature_D = bundle.gallery_features(bundle.read_gallery(tiny_bundle.folder))[5]
    for given in (text(feature_D), feature_D.tolist()):
        written = live.put(
            "/v1/gallery/twin", json={"feature": given, "encoder": encoder, "category": ["twins"]}
        )
        assert written.status_code in (200, 201)
    answer = live.post(
        "/v1/search",
        params={"min_version": written.json()["version"]},
        json={"image_id": "image-5", "category": ["twins"]},
    )
    [result] = answer.json()["results"]
    assert result["image_id"] == "twin"
    assert result["score"] == pytest.approx(1.0, abs=1e-5)
    problem(live.get("/v1/images/twin"), 404)
    live.delete("/v1/gallery/twin")


@pytest.mark.parametrize(
    ("body", "status", "wrong"),
    [
        ({}, 422, "image"),
        ({"feature": [1.0]}, 422, ""),
        ({"feature": [1.0], "encoder": "0" * 12}, 409, None),
        ({"image_base64": "%%%"}, 422, "image_base64"),
        ({"image_base64": base64.b64encode(b"no image").decode()}, 422, None),
        ({"image_base64": "AAAA", "attributes": {"a": 1}}, 422, "attributes.a"),
        ({"image_base64": "AAAA", "attributes": {f"a{n}": "b" for n in range(65)}}, 422, None),
        ({"image_base64": "AAAA", "colour": "red"}, 422, "colour"),
    ],
)
def test_what_is_wrong_is_told(
    live: httpx.Client, body: dict[str, Any], status: int, wrong: str | None
) -> None:
    refusal = problem(live.put("/v1/gallery/wrong", json=body), status)
    if wrong is not None:
        assert fields(refusal) == [wrong]
    assert "wrong" not in ids(live, 0)


def test_a_feature_must_be_a_vector_of_this_encoder(live: httpx.Client, encoder: str) -> None:
    for feature in ([1.0], [0.0] * 96, "AAAA", [1e38] * 96):
        refusal = problem(
            live.put("/v1/gallery/wrong", json={"feature": feature, "encoder": encoder}), 422
        )
        assert fields(refusal) == ["feature"]


@pytest.mark.parametrize("image_id", ["%20", "a%09b", "x" * 513, "%20a", "%E2%80%8B"])
def test_an_id_that_nobody_could_type_is_refused(live: httpx.Client, image_id: str) -> None:
    assert fields(problem(put(live, image_id, noise(4)), 422)) == ["image_id"]
    problem(live.delete(f"/v1/gallery/{image_id}"), 404)  # a bundle's may be anything
    problem(live.delete(f"/v1/gallery/{image_id}%00"), 404)  # but this


@pytest.mark.parametrize(
    "image_id", ["Screen\u202fAM", "\u3000 x".strip(), "a\u00a0b", "\u0645\u200c\u06cc"]
)
def test_names_of_files_with_unusual_spaces_and_joiners_are_ids(
    live: httpx.Client, image_id: str
) -> None:
    path = quote(image_id, safe="")
    assert put(live, path, noise(4)).json()["image_id"] == image_id
    assert live.delete(f"/v1/gallery/{path}").status_code == 200


def lines(*items: Any) -> bytes:
    return b"\n".join(
        item if isinstance(item, bytes) else json.dumps(item).encode() for item in items
    )


def imported(live: httpx.Client, body: Any) -> list[dict[str, Any]]:
    headers = {"content-type": "application/x-ndjson"}
    with live.stream("POST", "/v1/gallery:import", content=body, headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("application/x-ndjson")
        return [json.loads(line) for line in answer.iter_lines()]


def test_an_import_tells_what_became_of_each_line(live: httpx.Client, encoder: str) -> None:
    rng = np.random.default_rng(5)
    good = {"encoder": encoder, "category": ["imported"]}
    items = imported(
        live,
        lines(
            *(
                {**good, "image_id": f"many-{number}", "feature": text(rng.normal(size=96))}
                for number in range(300)
            ),
            b"rubbish",
            b"",
            {"image_id": "no picture"},
            {
                "image_id": "picture",
                "image_base64": base64.b64encode(noise(6)).decode(),
                "category": ["imported"],
            },
            {**good, "image_id": "many-3", "feature": text(rng.normal(size=96))},
        ),
    )
    assert [item["line"] for item in items] == [*range(1, 302), *range(303, 306)]
    assert [item["status"] for item in items] == [201] * 300 + [422, 422, 201, 200]
    versions = [item["version"] for item in items if "version" in item]
    assert len(set(versions)) == 302
    assert items[301]["image_id"] == "no picture"
    page = live.get(
        "/v1/gallery", params={"category": "imported", "min_version": max(versions)}
    ).json()
    assert page["total"] == 301
    for number in range(300):
        live.delete(f"/v1/gallery/many-{number}")
    live.delete("/v1/gallery/picture")


def test_of_two_lines_with_one_id_the_later_one_stands(live: httpx.Client) -> None:
    pictures = [noise(seed) for seed in range(7, 12)]
    encoded = [base64.b64encode(data).decode() for data in pictures]
    items = imported(
        live, lines(*({"image_id": "again", "image_base64": data} for data in encoded))
    )
    assert [item["status"] for item in items] == [201, 200, 200, 200, 200]
    assert found(live, pictures[-1], items[-1]["version"])[0] == "again"
    live.delete("/v1/gallery/again")


def test_an_import_is_answered_while_it_is_sent(live: httpx.Client, encoder: str) -> None:
    """Larger than any buffer on the way, and more than the service takes in one request without a
    stream.
    """
    rng = np.random.default_rng(12)

    def body() -> Iterator[bytes]:
        for number in range(500):
            line = {
                "image_id": f"sent-{number % 50}",
                "encoder": encoder,
                "feature": text(rng.normal(size=96)),
            }
            yield json.dumps(line).encode() + b" " * 8000 + b"\n"

    items = imported(live, body())
    assert len(items) == 500
    assert {item["status"] for item in items} == {200, 201}
    for number in range(50):
        live.delete(f"/v1/gallery/sent-{number}")


def test_an_import_ends_at_its_limits(live: httpx.Client, encoder: str) -> None:
    line = {"image_id": "limit", "encoder": encoder, "feature": text(np.ones(96, np.float32))}
    items = imported(live, lines(*[line] * 602))
    assert len(items) == 601
    assert (items[-1]["status"], items[-1]["problem"]["limit"]) == (422, "max_import")
    items = imported(live, lines(line, {**line, "category": ["x" * 2_100_000]}, line))
    assert [item["status"] for item in items] == [200, 413]
    assert items[-1]["problem"]["limit"] == "max_body_bytes"
    live.delete("/v1/gallery/limit")


def test_an_import_of_another_content_type_is_refused(live: httpx.Client) -> None:
    answer = live.post("/v1/gallery:import", content=b"{}", headers={"content-type": "text/plain"})
    assert "application/x-ndjson" in problem(answer, 415)["detail"]


def test_a_version_that_the_database_does_not_have_is_not_waited_for(live: httpx.Client) -> None:
    for path in ("/v1/gallery", "/v1/images/image-1"):
        answer = live.get(path, params={"min_version": 10**9})
        assert fields(problem(answer, 422)) == ["min_version"]
    problem(live.post("/v1/search", params={"min_version": 10**9}, json={"text": "is blue"}), 422)


def test_a_gallery_that_does_not_change_says_so(client: httpx.Client, live: httpx.Client) -> None:
    assert (client.get("/v1/info").json()["live"], live.get("/v1/info").json()["live"]) == (
        False,
        True,
    )
    headers = {"content-type": "application/x-ndjson"}
    for answer in (
        put(client, "a", noise(13)),
        client.delete("/v1/gallery/image-1"),
        client.post("/v1/gallery:import", content=b"{}", headers=headers),
    ):
        assert "does not change" in problem(answer, 403)["detail"]
