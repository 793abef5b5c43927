"""The service on a real Ray Serve, once for the tests of this folder."""

import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest


@pytest.fixture(scope="session")
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def client(ray_cluster: Any, tiny_bundle: Any, free_port: int) -> Iterator[httpx.Client]:
    """HTTP to a service that answers from the tiny bundle; requests of more than 2 MB are too large for it."""
    from ray import serve

    from serve.app import build
    from serve.schemas import ServeArgs

    args = ServeArgs(bundle=str(tiny_bundle.folder), threads=1, cpus=0, max_body_bytes=2_000_000)
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": free_port})
    serve.run(build(args), name="raycd", route_prefix="/")
    with httpx.Client(base_url=f"http://127.0.0.1:{free_port}", timeout=60) as client:
        yield client
    serve.shutdown()
