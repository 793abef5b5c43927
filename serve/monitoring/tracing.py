"""Traces of requests by OpenTelemetry: where they go, and the spans of a replica's own steps.

Ray Serve makes the spans of its proxy and of the replica, and passes the context of a trace from
one to the other; what is made here stands below them. Ray brings OpenTelemetry's API and SDK, the
extra [otel] what sends spans. Without tracing, a request still has a trace id, for its log lines.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib import import_module

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags

from raycd.errors import ConfigError

SHARE = "OTEL_TRACES_SAMPLER_ARG"
"""In the environment: the share of traces that is sent, of those that no client has begun."""

_EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
_tracer = trace.get_tracer("raycd")
_ids = RandomIdGenerator()


def processors() -> list[SpanProcessor]:
    """Return what sends spans by OTLP over HTTP, as OTEL_* in the environment say.

    Each proxy and replica of Ray Serve calls it.
    """
    return [BatchSpanProcessor(import_module(_EXPORTER).OTLPSpanExporter())]


def environment() -> dict[str, str]:
    """Return what has Ray Serve trace, in the environment of the Ray that it starts.

    (Its `tracing_config` does not reach its own proxy, in Ray 2.60.)

    Raises:
        ConfigError: What sends spans is not installed, or the share is not one.
    """
    try:
        import_module(_EXPORTER)
    except ModuleNotFoundError as error:
        raise ConfigError(
            "traces need the package opentelemetry-exporter-otlp-proto-http",
            got="it is not installed",
            do="pip install 'raycd[otel]'",
        ) from error
    given = os.environ.get(SHARE) or "1"
    try:
        share = float(given)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ConfigError(
            f"{SHARE} is not a share of traces", got=given, expected="a number from 0 to 1"
        )
    return {
        "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH": f"{__name__}:{processors.__name__}",
        "RAY_SERVE_TRACING_SAMPLING_RATIO": str(share),
        "OTEL_SERVICE_NAME": os.environ.get("OTEL_SERVICE_NAME", "raycd"),
    }


def span(name: str, attributes: Mapping[str, str] | None = None) -> AbstractContextManager[Span]:
    """Return a span of the current trace, for `with`."""
    return _tracer.start_as_current_span(name, attributes=attributes)


def request(name: str, given: Context) -> Span:
    """Return a request's span: below Ray Serve's, else below that which the client has `given`.

    Ray Serve begins a trace of its own where the client's shall not be sent: the client's counts.
    Where nobody traces, the span has ids alone.
    """
    here, client = (trace.get_current_span(context).get_span_context() for context in (None, given))
    if here.is_valid and (here.trace_id == client.trace_id or not client.is_valid):
        made = _tracer.start_span(name)
    else:
        made = _tracer.start_span(name, given, SpanKind.SERVER)
    if made.get_span_context().is_valid:
        return made
    return NonRecordingSpan(
        SpanContext(_ids.generate_trace_id(), _ids.generate_span_id(), is_remote=False)
    )


def unsampled() -> AbstractContextManager[Span]:
    """Return a context of the current trace in which no span is recorded: of very many steps."""
    here = trace.get_current_span().get_span_context()
    ids = SpanContext(here.trace_id, here.span_id, is_remote=False, trace_flags=TraceFlags(0))
    return trace.use_span(NonRecordingSpan(ids))


def steps(timings_ms: Mapping[str, float]) -> None:
    """Record spans of steps that have followed each other until now, each with its milliseconds.

    A batch answers several requests in a thread of its own: only afterwards it is known of each
    how long it has waited, was encoded and searched. Their `total` is no step.
    """
    if not trace.get_current_span().is_recording():
        return
    nanoseconds = {step: int(1e6 * ms) for step, ms in timings_ms.items() if step != "total"}
    at = time.time_ns() - sum(nanoseconds.values())
    for step, took in nanoseconds.items():
        _tracer.start_span(step, start_time=at).end(at + took)
        at += took


def header(of: SpanContext) -> str:
    """Return the W3C `traceparent` of a span."""
    ids = f"{trace.format_trace_id(of.trace_id)}-{trace.format_span_id(of.span_id)}"
    return f"00-{ids}-{of.trace_flags:02x}"
