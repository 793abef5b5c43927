"""A request's trace: its ids in and out, its steps, and the log lines that name it."""

from __future__ import annotations

import base64
import io
import itertools
import json
import logging
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from ray._common.formatters import JSONFormatter

from raycd.client import Client
from raycd.client.errors import ServiceError
from raycd.errors import ConfigError
from serve import app
from serve.monitoring import logs, tracing
from serve.start.local import free_port
from tests.serve.asking import png

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("traced") / "gallery.sqlite"


@pytest.fixture(scope="module")
def url(start_replica: Callable[..., str], service_args: Any, database: Path) -> str:
    return start_replica(service_args.model_copy(update={"gallery": str(database)}), "traced")


def traceparent(url: str, **headers: str) -> str:
    """Return what an answer says of its trace."""
    return str(httpx.get(f"{url}/healthz", headers=headers).headers["traceparent"])


def test_an_answer_names_the_trace_of_its_request(url: str) -> None:
    for flags in ("00", "01"):
        given = f"00-{TRACE}-{SPAN}-{flags}"
        assert traceparent(url, traceparent=given).split("-")[:2] == ["00", TRACE]


@pytest.mark.parametrize(
    "given",
    ["", "nothing", f"00-{TRACE}", f"00-{'0' * 32}-{SPAN}-01", f"ff-{TRACE}-{SPAN}-01", "0" * 9999],
)
def test_a_request_without_a_trace_begins_one(url: str, given: str) -> None:
    first, second = (traceparent(url, traceparent=given) for _ in range(2))
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", first)
    assert first != second
    assert TRACE not in first


def test_what_is_refused_names_its_trace_too(url: str) -> None:
    with Client(url) as client, pytest.raises(ServiceError) as refused:
        client.search(text="is blue", top_k=10**6)
    assert re.fullmatch("[0-9a-f]{32}", str(refused.value.trace_id))


def test_each_line_of_a_request_names_its_trace(url: str, database: Path) -> None:
    log, moved = logging.getLogger("ray.serve"), database.with_name("moved.sqlite")
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    as_fields, in_text = logs._Traces(as_fields=True), logs._Traces(as_fields=False)
    database.rename(moved)
    log.addHandler(handler)
    try:
        for each, formatter in ((as_fields, JSONFormatter()), (in_text, logging.Formatter())):
            handler.setFormatter(formatter)
            handler.filters = [each]
            refused = httpx.delete(
                f"{url}/v1/gallery/image-0", headers={"traceparent": f"00-{TRACE}-{SPAN}-01"}
            )
            assert refused.status_code == 503
    finally:
        log.removeHandler(handler)
        moved.rename(database)
    lines = [line for line in said.getvalue().splitlines() if "DELETE /v1/gallery" in line]
    assert json.loads(lines[0])["trace_id"] == TRACE
    assert lines[1].startswith(f"trace {TRACE}: DELETE /v1/gallery")


def test_a_search_is_one_trace_of_client_service_and_steps(
    spans: InMemorySpanExporter, url: str, tiny_bundle: Any
) -> None:
    with Client(url) as client:
        client.search(image=png(tiny_bundle.images[0]), text="is blue")
    by_name = {span.name: span for span in finished(spans, 7)}
    request = by_name["POST /v1/search"]
    assert parent(request) == by_name["POST"].context.span_id
    steps = [by_name[name] for name in ("read", "decode", "wait", "encode", "search")]
    assert {parent(step) for step in steps} == {request.context.span_id}
    for step, after in itertools.pairwise(steps):
        assert step.end_time == after.start_time
    assert {span.context.trace_id for span in by_name.values()} == {request.context.trace_id}
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/search",
        "http.response.status_code": 200,
    }


def test_a_write_has_its_encoding_and_its_database_in_its_trace(
    spans: InMemorySpanExporter, url: str, tiny_bundle: Any
) -> None:
    with Client(url) as client:
        client.put("traced-1", image=png(tiny_bundle.images[0]))
    by_name = {span.name: span for span in finished(spans, 4)}
    request = by_name["PUT /v1/gallery/{image_id:path}"]
    for name in ("encode", "database"):
        assert parent(by_name[name]) == request.context.span_id
    assert by_name["database"].attributes == {"db.system.name": "sqlite"}


def test_an_import_is_one_span_whatever_its_length(
    spans: InMemorySpanExporter, url: str, tiny_bundle: Any
) -> None:
    image = base64.b64encode(png(tiny_bundle.images[0])).decode()
    lines = [json.dumps({"image_id": f"line-{n}", "image_base64": image}) for n in range(3)]
    answer = httpx.post(
        f"{url}/v1/gallery:import",
        content="\n".join(lines),
        headers={"content-type": "application/x-ndjson"},
    )
    assert [json.loads(line)["status"] for line in answer.text.splitlines()] == [201] * 3
    assert [span.name for span in finished(spans, 1)] == ["POST /v1/gallery:import"]


def test_traces_without_what_sends_them_end_with_one_message(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tiny_bundle: Any
) -> None:
    monkeypatch.setitem(sys.modules, tracing._EXPORTER, None)  # as not installed
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    options = ["--bundle", str(tiny_bundle.folder), "--port", str(free_port())]
    assert app.main([*options, "--traces"]) == 2
    said = capfd.readouterr().err
    assert "opentelemetry-exporter-otlp-proto-http" in said
    assert "pip install 'raycd[otel]'" in said
    assert "Traceback" not in said


def test_a_log_that_cannot_be_written_ends_with_one_message(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tiny_bundle: Any,
    tmp_path: Path,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "file").touch()
    options = ["--bundle", str(tiny_bundle.folder), "--port", str(free_port())]
    assert app.main([*options, "--log-dir", str(tmp_path / "file" / "logs")]) == 2
    assert "error: the log cannot be written there" in capfd.readouterr().err


def test_a_client_that_sends_no_trace_is_followed_where_the_service_traces(
    spans: InMemorySpanExporter,
) -> None:
    given = TraceContextTextMapPropagator().extract({"traceparent": f"00-{TRACE}-{SPAN}-00"})
    with tracing.span("of Ray Serve"):
        below = tracing.request("GET", given).get_span_context()
        assert (f"{below.trace_id:x}", below.trace_flags) == (TRACE, 0)
        own = tracing.request("GET", Context()).get_span_context()
        assert own.trace_id == trace.get_current_span().get_span_context().trace_id


def test_the_share_of_traces_is_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    assert tracing.environment()["RAY_SERVE_TRACING_SAMPLING_RATIO"] == "1.0"
    monkeypatch.setenv(tracing.SHARE, "0.25")
    assert tracing.environment()["RAY_SERVE_TRACING_SAMPLING_RATIO"] == "0.25"
    for wrong in ("2", "nan", "some"):
        monkeypatch.setenv(tracing.SHARE, wrong)
        with pytest.raises(ConfigError, match="is not a share of traces"):
            tracing.environment()


def finished(spans: InMemorySpanExporter, count: int) -> list[ReadableSpan]:
    """Return the spans, once so many have ended: the service's own ends after its answer."""
    until = time.monotonic() + 10
    while len(found := spans.get_finished_spans()) < count and time.monotonic() < until:
        time.sleep(0.02)
    assert len(found) == count, [span.name for span in found]
    return list(found)


def parent(span: ReadableSpan) -> int | None:
    return span.parent and span.parent.span_id
