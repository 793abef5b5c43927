"""The trace of each request: `traceparent` in and out, and a span named by the route."""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from serve.monitoring import tracing
from serve.security.asgi import HttpMiddleware

TRACEPARENT = "traceparent"  # in requests and in answers
_propagator = TraceContextTextMapPropagator()


class Traced(HttpMiddleware):
    """Makes each request a span, of the trace that the client names, or of a new one.

    The answer's `traceparent` is that span, whether or not it is sent anywhere.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope["method"]
        span = tracing.request(method, _propagator.extract(Headers(scope=scope)))
        here = tracing.header(span.get_span_context())

        async def with_trace(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[TRACEPARENT] = here
                span.set_attribute("http.response.status_code", message["status"])
            await send(message)

        with trace.use_span(span, end_on_exit=True):
            try:
                await self.app(scope, receive, with_trace)
            finally:
                if route := getattr(scope.get("route"), "path", ""):
                    span.update_name(f"{method} {route}")
                    span.set_attributes({"http.request.method": method, "http.route": route})
