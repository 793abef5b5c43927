"""The guard of the real service: keys that come and go, and what everybody may see."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve import keys
from serve.args import ServeArgs
from serve.security.keyring import CHECK_S
from tests.serve.api.test_guard import PAGE, bearer
from tests.serve.asking import ask, png, problem, stands


@pytest.fixture(scope="module")
def keyed(
    start_replica: Callable[..., str],
    service_args: ServeArgs,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, Path]:
    """Return the URL of a real service that wants keys, under a prefix, and its file of keys."""
    file = tmp_path_factory.mktemp("keyed") / "keys.json"
    keys.add(file, "first", "write")
    args = service_args.model_copy(
        update={"api_keys": str(file), "cors_origins": (PAGE,), "hosts": ("127.0.0.1",)}
    )
    return start_replica(args, "keyed"), file


def within(seconds: float, is_so: Callable[[], bool]) -> bool:
    """Return whether a state comes within some seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if is_so():
            return True
        time.sleep(CHECK_S / 4)
    return False


def test_the_service_lets_a_read_key_search_and_not_write(
    keyed: tuple[str, Path], tiny_bundle: Any
) -> None:
    url, file = keyed
    reader = keys.add(file, "reader", "read")
    with httpx.Client(base_url=url, headers=bearer(reader), timeout=60) as client:
        assert within(30, lambda: client.get("/v1/gallery").status_code == 200)  # without a restart
        assert ask(client, png(tiny_bundle.images[0]), text="is blue").status_code == 200
        assert (
            client.post("/v1/search/batch", json={"searches": [{"text": "is blue"}]}).status_code
            == 200
        )
        problem(client.put("/v1/gallery/a", json={}), 403)
        problem(client.delete("/v1/gallery/a"), 403)
        problem(client.post("/v1/gallery:import", content=b""), 403)


def test_the_service_refuses_a_revoked_key_without_a_restart(keyed: tuple[str, Path]) -> None:
    url, file = keyed
    reader = keys.add(file, "leaver", "read")
    with httpx.Client(base_url=url, headers=bearer(reader), timeout=60) as client:
        assert within(30, lambda: client.get("/v1/gallery").status_code == 200)
        keys.remove(file, "leaver")
        assert within(30, lambda: client.get("/v1/gallery").status_code == 401)
        problem(client.get("/v1/gallery"), 401)


def test_the_service_shows_its_page_and_its_state_to_everybody(keyed: tuple[str, Path]) -> None:
    url, _ = keyed
    for path in ("/", "/web/app.js", "/healthz", "/readyz", "/docs", "/openapi.json"):
        assert httpx.get(f"{url}{path}", timeout=60).status_code == 200, path
    problem(httpx.get(f"{url}/v1/gallery"), 401)
    problem(httpx.get(f"{url}/v1/gallery", headers={"Host": "evil.example"}), 421)


def test_the_service_counts_what_it_refuses(keyed: tuple[str, Path]) -> None:
    import ray

    problem(httpx.get(f"{keyed[0]}/v1/gallery"), 401)
    [node] = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's
    metrics = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    counted = 'ray_raycd_request_seconds_count{...path="other"...status="401"'
    assert within(60, lambda: stands(counted, httpx.get(metrics, timeout=10).text))
