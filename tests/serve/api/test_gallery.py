"""The gallery, its pictures, what the page needs to know, and whether the service is well."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import httpx
import pytest
from PIL import Image

from raycd.api import GalleryPage, Info
from tests.serve.asking import fields, problem


def page(client: httpx.Client, **parameters: Any) -> GalleryPage:
    response = client.get("/v1/gallery", params=parameters)
    assert response.status_code == 200, response.text
    return GalleryPage.model_validate(response.json())


def test_the_gallery_page_by_page(client: httpx.Client, tiny_bundle: Any) -> None:
    first, second = page(client, limit=8), page(client, limit=8, offset=8)
    assert [item.image_id for item in first.items + second.items] == tiny_bundle.image_ids
    assert (first.total, second.total, second.offset) == (12, 12, 8)
    assert page(client, offset=100).items == []
    assert (first.items[1].category, first.items[3].attributes) == ("dress", {"pattern": "striped"})


def test_the_gallery_by_category_and_attribute(client: httpx.Client) -> None:
    assert [item.image_id for item in page(client, category="toptee", limit=3).items] == [
        "image-0",
        "image-2",
        "image-4",
    ]
    assert page(client, category=["dress", "shirt"]).total == 12
    found = page(client, category="dress", attribute="pattern:striped")
    assert [item.image_id for item in found.items] == ["image-3", "image-9"]
    assert fields(problem(client.get("/v1/gallery", params={"attribute": "striped"}), 422)) == [
        "attribute"
    ]
    assert problem(client.get("/v1/gallery", params={"limit": 51}), 422)["limit"] == "max_page"
    assert fields(problem(client.get("/v1/gallery", params={"offset": -1}), 422)) == ["offset"]


def test_pictures_small_and_whole_with_a_name_of_their_content(
    client: httpx.Client, tiny_bundle: Any
) -> None:
    small = client.get("/v1/images/image-3")
    assert small.headers["content-type"] == "image/jpeg"
    assert Image.open(BytesIO(small.content)).size == (40, 48)
    whole = client.get("/v1/images/image-3", params={"size": "original"})
    assert whole.headers["content-type"] == "image/png"
    assert (
        Image.open(BytesIO(whole.content)).convert("RGB").tobytes()
        == tiny_bundle.images[3].tobytes()
    )
    again = client.get("/v1/images/image-3", headers={"if-none-match": small.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert "max-age" in small.headers["cache-control"]


@pytest.mark.parametrize("image_id", ["nobody", "../../etc/passwd", "image-3/"])
def test_a_picture_that_is_not_in_the_gallery_is_not_found(
    client: httpx.Client, image_id: str
) -> None:
    problem(client.get(f"/v1/images/{image_id.replace('/', '%2F')}"), 404)


def test_what_a_client_needs_to_know(client: httpx.Client) -> None:
    info = Info.model_validate(client.get("/v1/info").json())
    assert info.categories == {"shirt": 6, "toptee": 6, "dress": 6}
    assert info.attributes == {"pattern": {"striped": 4}}
    assert (info.limits.body_bytes, info.limits.batch, info.default_top_k) == (2_000_000, 4, 10)
    assert info.example_texts == ["is blue", "has long sleeves"]
    assert not info.image_url


def test_health_readiness_and_the_interfaces_description(client: httpx.Client) -> None:
    assert client.get("/healthz").json()["status"] == "ok"
    ready = client.get("/readyz").json()
    assert (ready["status"], ready["replicas"]) == ("ready", 1)
    description = client.get("/openapi.json").json()
    search = description["paths"]["/v1/search"]["post"]
    assert set(search["requestBody"]["content"]) == {"application/json", "multipart/form-data"}
    assert set(search["responses"]) >= {"200", "400", "403", "404", "413", "415", "422", "503"}
    asked = search["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert {
        "image_id",
        "image_base64",
        "image_url",
        "text",
        "negative_text",
        "exclude_reference",
    } <= set(asked)
    assert {"SearchResponse", "BatchResponse", "Problem"} <= set(
        description["components"]["schemas"]
    )
    docs = client.get("/docs").text
    assert "swagger" in docs
    assert "https://" not in docs


def test_browsers_are_told_to_run_nothing_else(client: httpx.Client) -> None:
    headers = client.get("/").headers
    assert headers["content-security-policy"].startswith("default-src 'self'")
    assert "unsafe" not in headers["content-security-policy"]
    assert client.get("/v1/info").headers["x-content-type-options"] == "nosniff"
