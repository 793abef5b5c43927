"""What Prometheus reads from Ray's own port, after a few requests."""

from __future__ import annotations

import time
from typing import Any

import httpx

EXPECTED = (
    'ray_raycd_request_seconds_count{...path="/v1/search"...status="200"',
    'ray_raycd_request_seconds_count{...path="/v1/search"...status="422"',
    'ray_raycd_request_seconds_count{...path="other"...status="404"',
    'ray_raycd_step_seconds_count{...step="wait"',
    'ray_raycd_step_seconds_count{...step="encode"',
    "ray_raycd_batch_size_count{",
    "ray_raycd_busy{",
    "ray_raycd_gallery_images{",
    "ray_raycd_gallery_version{",
    "ray_raycd_gallery_lag_seconds{",
)


def test_requests_batches_and_the_gallery_are_exported(
    client: httpx.Client, ray_cluster: Any
) -> None:
    import ray

    assert client.post("/v1/search", json={"text": "is blue"}).status_code == 200
    assert client.post("/v1/search", json={}).status_code == 422
    assert client.get("/nowhere/in-particular").status_code == 404
    [node] = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    until, text = time.monotonic() + 60, ""
    while not all(stands(line, text) for line in EXPECTED):
        assert time.monotonic() < until, [line for line in EXPECTED if not stands(line, text)]
        time.sleep(0.5)
        text = httpx.get(url, timeout=10).text
    assert "in-particular" not in text  # paths are endless, routes are few


def stands(expected: str, text: str) -> bool:
    """Return whether a line has all parts, in this order."""
    first, *parts = expected.split("...")
    lines = [line for line in text.splitlines() if line.startswith(first)]
    return any(all(part in line for part in parts) for line in lines)
