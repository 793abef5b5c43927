"""Adding and removing an image, and answers of a gallery that is new enough."""

import asyncio
import base64
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.requests import Request

from raycd.api import GalleryImage
from raycd.client import Client, ServiceError
from raycd.errors import DataError
from serve.api import bodies
from serve.args import ServeArgs
from tests.client.scripted import Asked, Reply, Service, Waits, found, info, item, refusal, written

DROPPED = Reply(0)
ENCODER = "0123456789ab"


def as_the_service_reads(asked: Asked) -> tuple[GalleryImage, bytes | None]:
    """Return the image as the service's own parser reads it."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": asked.body, "more_body": False}

    headers = [(name.encode(), value.encode()) for name, value in asked.headers.items()]
    request = Request({"type": "http", "method": asked.method, "headers": headers}, receive)
    fields, image = asyncio.run(bodies.read(request, ServeArgs()))
    return bodies.validated(GalleryImage, fields), image


def test_the_service_reads_every_field_beside_a_picture(
    client: Client, service: Service, tmp_path: Path
) -> None:
    path = tmp_path / "private name.jpg"
    path.write_bytes(b"\xff\xd8 \r\n--x")
    service.answers(Reply(201, written("DV1", 7)))
    change = client.put(
        "DV1",
        path,
        category=["dress", "shirt"],
        attributes={"colour": "grün"},
        feature=[1.0, -0.5],
        encoder=ENCODER,
    )
    assert (change.version, change.created) == (7, True)
    [asked] = service.asked
    assert (asked.method, asked.path) == ("PUT", "/v1/gallery/DV1")
    assert b"private name" not in asked.body
    read, picture = as_the_service_reads(asked)
    assert picture == b"\xff\xd8 \r\n--x"
    assert (read.category, read.attributes, read.encoder) == (
        ["dress", "shirt"],
        {"colour": "grün"},
        ENCODER,
    )
    assert isinstance(read.feature, str)
    assert struct.unpack("<2f", base64.b64decode(read.feature)) == (1.0, -0.5)


def test_a_feature_without_a_picture_is_json_of_little_endian_float32(
    client: Client, service: Service
) -> None:
    feature_D = np.array([0.1, -2, 3e38], np.float32)
    service.answers(*[Reply(200, written("DV1", 8, created=False))] * 2)
    assert not client.put("DV1", feature=feature_D, encoder=ENCODER, category="dress").created
    client.put("DV1", feature=feature_D.astype(np.float64), encoder=ENCODER)
    first, second = (asked.json() for asked in service.asked)
    assert base64.b64decode(first.pop("feature")) == feature_D.astype("<f4").tobytes()
    assert first == {"encoder": ENCODER, "category": ["dress"]}
    assert base64.b64decode(second["feature"]) == feature_D.astype("<f4").tobytes()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "neither a picture nor a feature"),
        ({"image": "/nowhere/x.jpg"}, "cannot read the image '/nowhere/x.jpg'"),
        ({"feature": [1.0]}, "a feature needs `encoder`"),
        ({"feature": [float("nan")], "encoder": ENCODER}, "not finite"),
        ({"feature": [1e39], "encoder": ENCODER}, "the feature is impossible"),
        ({"feature": np.zeros((2, 2)), "encoder": ENCODER}, "the feature is impossible"),
        ({"feature": 7, "encoder": ENCODER}, "the feature is impossible"),
        ({"image": b"x", "attributes": {"size": 7}}, "attributes.size: "),
        ({"image": b"x", "category": [""]}, "category.0: "),
    ],
)
def test_an_impossible_image_is_told_before_anything_is_sent(
    client: Client, service: Service, given: Any, message: str
) -> None:
    with pytest.raises(DataError, match=r"(?s).*" + message):
        client.put("DV1", **given)
    assert service.asked == []


@pytest.mark.parametrize("image_id", ["", " ", "..", "."])
def test_a_name_that_no_url_can_carry_is_told(
    client: Client, service: Service, image_id: str
) -> None:
    with pytest.raises(DataError, match="image_id"):
        client.put(image_id, b"pixels")
    with pytest.raises(DataError, match="image_id"):
        client.delete(image_id, missing_ok=True)
    assert service.asked == []


def test_a_name_may_hold_slashes(client: Client, service: Service) -> None:
    service.answers(Reply(201, written("a/b c?#é", 1)), Reply(200, written("a/b c?#é", 2)))
    client.put("a/b c?#é", b"pixels")
    client.delete("a/b c?#é")
    assert [(asked.method, asked.path) for asked in service.asked] == [
        ("PUT", "/v1/gallery/a%2Fb%20c%3F%23%C3%A9"),
        ("DELETE", "/v1/gallery/a%2Fb%20c%3F%23%C3%A9"),
    ]


def test_a_put_is_sent_again_whole_after_a_broken_connection_and_a_busy_service(
    client: Client, service: Service, waits: Waits
) -> None:
    service.answers(DROPPED, refusal(503, after="3"), Reply(200, written("DV1", 9, created=False)))
    assert client.put("DV1", b"pixels").version == 9
    assert [as_the_service_reads(asked)[1] for asked in service.asked] == [b"pixels"] * 3
    assert waits.seconds[1] > 3


def test_a_refused_put_is_not_sent_again(client: Client, service: Service) -> None:
    service.answers(refusal(507, "the disk is full"))
    with pytest.raises(ServiceError, match="the disk is full"):
        client.put("DV1", b"pixels")
    assert len(service.asked) == 1


def test_deleting_tells_the_version(client: Client, service: Service) -> None:
    service.answers(Reply(200, written("DV1", 9, created=False)))
    change = client.delete("DV1")
    assert change is not None
    assert change.version == 9


def test_deleting_what_is_not_there_is_an_error_unless_it_may_be_missing(
    client: Client, service: Service
) -> None:
    service.answers(*[refusal(404, "the gallery has no image 'DV1'")] * 2)
    with pytest.raises(ServiceError, match="no image 'DV1'") as caught:
        client.delete("DV1")
    assert caught.value.status == 404
    assert client.delete("DV1", missing_ok=True) is None


def test_a_gallery_that_there_is_not_is_no_image_that_may_be_missing(
    client: Client, service: Service
) -> None:
    service.answers(refusal(404, "the service has no gallery 'shos'", reason="no_gallery"))
    with pytest.raises(ServiceError, match="no gallery 'shos'"):
        client.delete("DV1", missing_ok=True)


def test_an_image_that_is_gone_at_the_second_try_was_deleted_by_the_first(
    client: Client, service: Service
) -> None:
    service.answers(DROPPED, refusal(404))
    assert client.delete("DV1") is None
    assert len(service.asked) == 2


def test_a_404_that_the_service_did_not_say_is_always_an_error(
    client: Client, service: Service
) -> None:
    service.answers(DROPPED, Reply(404, b"<html>", "text/html"))
    with pytest.raises(ServiceError, match="a proxy, or another server"):
        client.delete("DV1", missing_ok=True)


READS: list[tuple[Callable[[Client, int | None], object], Reply, str]] = [
    (
        lambda client, version: client.search(text="x", min_version=version),
        Reply(body=found()),
        "/v1/search",
    ),
    (
        lambda client, version: client.search_batch([{"text": "x"}], min_version=version),
        Reply(body={"items": [{"status": 200, "response": found()}]}),
        "/v1/search/batch",
    ),
    (
        lambda client, version: client.gallery(min_version=version),
        Reply(body={"items": [], "total": 0, "offset": 0}),
        "/v1/gallery?offset=0",
    ),
    (
        lambda client, version: client.image("a", min_version=version),
        Reply(body=b"x"),
        "/v1/images/a?size=thumbnail",
    ),
]


@pytest.mark.parametrize(("read", "reply", "path"), READS)
def test_what_reads_may_wait_for_a_version(
    client: Client,
    service: Service,
    read: Callable[[Client, int | None], object],
    reply: Reply,
    path: str,
) -> None:
    service.answers(reply, reply, reply)
    read(client, None)
    read(client, 0)
    read(client, 7)
    joint = "&" if "?" in path else "?"
    assert [asked.path for asked in service.asked] == [
        path,
        f"{path}{joint}min_version=0",
        f"{path}{joint}min_version=7",
    ]


def test_every_page_of_the_gallery_waits_for_the_version(client: Client, service: Service) -> None:
    service.answers(
        Reply(body=info(page=1)),
        *(Reply(body={"items": [item(name)], "total": 2, "offset": 0}) for name in ("a", "b")),
    )
    assert [each.image_id for each in client.iter_gallery(min_version=7)] == ["a", "b"]
    assert all(asked.path.endswith("&min_version=7") for asked in service.asked[1:])
