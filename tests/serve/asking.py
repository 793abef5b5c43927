"""How the tests of this folder ask, and what they expect of every problem document."""

from __future__ import annotations

from io import BytesIO
from typing import Any, Protocol

import httpx
from PIL import Image


class Answer(Protocol):
    """A response of httpx, or of Starlette's test client, which may bring an httpx of its own."""

    status_code: int

    @property
    def text(self) -> str: ...
    @property
    def headers(self) -> Any: ...
    def json(self) -> Any: ...


def saved(image: Image.Image, kind: str) -> bytes:
    """Return an image's file in a format of Pillow's."""
    buffer = BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def png(image: Image.Image) -> bytes:
    return saved(image, "PNG")


def ask(client: httpx.Client, image: bytes | None = None, **fields: Any) -> httpx.Response:
    """Send POST /v1/search as a form, in which a list is a field for each of its values."""
    files: list[tuple[str, Any]] = []
    if image is not None:
        files.append(("image", ("photo.png", image, "image/png")))
    for name, given in fields.items():
        values = given if isinstance(given, list) else [given]
        files += [(name, (None, str(value))) for value in values]
    return client.post("/v1/search", files=files)


def problem(response: Answer, status: int) -> dict[str, Any]:
    """Return the problem document, which must say nothing of the inside."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = dict(response.json())
    assert (body["type"], body["status"]) == ("about:blank", status)
    assert body["title"]
    assert body["detail"]
    assert not any(
        secret in response.text for secret in ("Traceback", "/tmp/", ".py", "site-packages")
    )
    return body


def fields(body: dict[str, Any]) -> list[str]:
    """Return the fields that a problem names."""
    return [error["field"] for error in body["errors"]]


def stands(expected: str, text: str) -> bool:
    """Return whether a line of metrics begins so and has all parts, which dots divide."""
    first, *parts = expected.split("...")
    lines = [line for line in text.splitlines() if line.startswith(first)]
    return any(all(part in line for part in parts) for line in lines)
