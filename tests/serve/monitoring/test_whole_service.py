"""Traces and log lines of the service as a user starts it: several processes, one trace."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Set
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from raycd.client import Client
from tests.serve.asking import png
from tests.serve.crash.process import Service
from tests.serve.monitoring.receiver import Received, receiver

PATIENCE_S = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="module")
def received() -> Iterator[Callable[[], list[Received]]]:
    """Run a receiver, and have the service's processes send there."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    with receiver() as (url, received), pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        yield received


@pytest.fixture(scope="module", params=["default", "haproxy"])
def proxy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def service(
    proxy: str, received: Callable[[], list[Received]], tiny_bundle: Any, folder: Path
) -> Iterator[Service]:
    options = {
        "bundle": tiny_bundle.folder,
        "gallery": folder / proxy / "gallery.sqlite",
        "proxy": proxy,
        "log-format": "json",
        "log-dir": folder / proxy / "logs",
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    with Service(*arguments, "--traces", log=folder / f"{proxy}.err") as service:
        yield service


@pytest.mark.slow
def test_client_proxy_replica_and_steps_are_one_trace(
    service: Service,
    proxy: str,
    received: Callable[[], list[Received]],
    spans: InMemorySpanExporter,
    tiny_bundle: Any,
) -> None:
    image = png(tiny_bundle.images[0])
    application = trace.get_tracer("application").start_as_current_span("application")
    with Client(service.url) as client, application as own:
        client.put("traced", image=image)
        client.search(image=image, text="is blue")
    asked = {
        trace.format_span_id(span.context.span_id): span for span in spans.get_finished_spans()
    }
    trace_id = trace.format_trace_id(own.get_span_context().trace_id)
    wanted = {"read", "decode", "wait", "encode", "search", "database"}
    by_id = {span.span_id: span for span in arrived(received, trace_id, wanted, asked.keys())}
    before = ["route_to_replica", "proxy_http_request"] if proxy == "default" else []
    for step in (span for span in by_id.values() if span.name in wanted):
        above, at = [], step
        while (at_id := at.parent_id) in by_id:
            at = by_id[at_id]
            above.append(at.name)
        assert above[0] in ("POST /v1/search", "PUT /v1/gallery/{image_id:path}")
        assert [name.partition(" ")[0] for name in above[1:]] == ["replica_handle_request", *before]
        assert asked[at.parent_id].name == above[0].partition(" ")[0]  # the client's request
        assert (above_it := asked[at.parent_id].parent) is not None
        assert above_it.span_id == own.get_span_context().span_id
    assert {span.service for span in by_id.values()} == {"raycd"}


@pytest.mark.slow
def test_each_line_of_a_request_is_json_with_its_trace_and_its_id(
    service: Service, proxy: str, folder: Path
) -> None:
    own = folder / proxy
    database = own / "gallery.sqlite"
    database.rename(own / "moved.sqlite")
    ids = {"x-request-id": "mine", "traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}
    refused = httpx.delete(f"{service.url}/v1/gallery/image-0", headers=ids, timeout=60)
    (own / "moved.sqlite").rename(database)
    assert refused.status_code == 503
    assert refused.headers["x-request-id"] == "mine"
    assert refused.headers["traceparent"].split("-")[1] == "ab" * 16
    until, lines = time.monotonic() + PATIENCE_S, list[dict[str, Any]]()
    while not lines:
        assert time.monotonic() < until, "no line of the request"
        time.sleep(0.2)
        files = (own / "logs").glob("replica_*.log")
        every = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        lines = [line for line in every if line["message"].startswith("DELETE /v1/gallery")]
    assert {(line["trace_id"], line["request_id"]) for line in lines} == {("ab" * 16, "mine")}


def arrived(
    received: Callable[[], list[Received]], trace_id: str, wanted: set[str], asked: Set[str]
) -> list[Received]:
    """Return the spans of a trace that was `asked` for, once those that are wanted are there, and
    all that they stand below.
    """
    until = time.monotonic() + PATIENCE_S
    while True:
        found = [span for span in received() if span.trace_id == trace_id]
        above = {span.parent_id for span in found} - {span.span_id for span in found}
        if wanted <= {span.name for span in found} and above <= asked:
            return found
        assert time.monotonic() < until, sorted(span.name for span in received())
        time.sleep(0.2)
