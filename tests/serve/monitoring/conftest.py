"""A service that was asked a little, where its metrics are, and the spans of this process."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.serve.asking import ask, png


@pytest.fixture(scope="module")
def metrics_url(client: httpx.Client, tiny_bundle: Any) -> str:
    """Ask the service what each metric needs; return the URL that Prometheus reads."""
    import ray

    for _ in range(2):
        assert client.post("/v1/search", json={"text": "is blue"}).status_code == 200
    assert ask(client, png(tiny_bundle.images[0]), text="is green").status_code == 200
    assert client.post("/v1/search", json={}).status_code == 422
    assert client.get("/v1/images/image-0").status_code == 200
    assert client.get("/nowhere/in-particular").status_code == 404
    assert client.get("/readyz").status_code == 200  # with its canary, what changes slowly
    [node] = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's
    return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"


@pytest.fixture(scope="session")
def promtool() -> str:
    """Return the path of promtool; skip where it is not installed."""
    return installed("promtool")


@pytest.fixture(scope="session")
def prometheus() -> str:
    """Return the path of prometheus; skip where it is not installed."""
    return installed("prometheus")


def installed(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed (Debian: apt-get install prometheus)")
    return found


@pytest.fixture(scope="session")
def exporter() -> Iterator[InMemorySpanExporter]:
    """Keep the spans of this process: its clients', its replicas'. It cannot be undone."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    assert trace.get_tracer_provider() is provider, "somebody else has set one"
    yield exporter
    provider.shutdown()


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> InMemorySpanExporter:
    """Keep the spans of one test."""
    exporter.clear()
    return exporter
