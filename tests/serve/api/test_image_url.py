"""An image by URL: where the service fetches at all, it fetches from public addresses alone."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from serve.args import ServeArgs
from tests.serve.asking import problem


@pytest.fixture(scope="module")
def fetching(start_replica: Callable[..., str], service_args: ServeArgs) -> str:
    """Start a service that fetches images."""
    return start_replica(
        service_args.model_copy(update={"image_url": True, "fetch_timeout_s": 2.0}), "fetching"
    )


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://example.org/a.jpg", "scheme"),
        ("file:///etc/passwd", "scheme"),
        ("https://127.0.0.1/a.jpg", "address"),
        ("https://localhost/a.jpg", "malformed"),
        ("https://[::ffff:169.254.169.254]/latest", "address"),
        ("https://user:secret@example.org/a.jpg", "credentials"),
        ("https://example.org:8443/a.jpg", "port"),
    ],
)
def test_an_address_that_is_not_public_is_refused(fetching: str, url: str, reason: str) -> None:
    response = httpx.post(
        f"{fetching}/v1/search", json={"image_url": url, "text": "is blue"}, timeout=60
    )
    body = problem(response, 422)
    assert body["reason"] == reason
    assert "secret" not in response.text


def test_the_service_says_whether_it_fetches(fetching: str, client: httpx.Client) -> None:
    assert httpx.get(f"{fetching}/v1/info", timeout=60).json()["image_url"] is True
    assert client.get("/v1/info").json()["image_url"] is False
