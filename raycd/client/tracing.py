"""The client's part of a trace: a span for each request, where the application traces at all.

An application that traces has imported OpenTelemetry, and has set up where its spans go.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx


class Request:
    """A request of the client in a trace.

    Attributes:
        headers: What it sends along: `traceparent`; nothing where nobody traces.
    """

    def __init__(self, headers: dict[str, str], note: Callable[[str, int], object]) -> None:
        self.headers, self._note = headers, note

    def answered(self, response: httpx.Response) -> None:
        """Note the status of the answer."""
        self._note("http.response.status_code", response.status_code)


@contextmanager
def request(method: str, path: str) -> Iterator[Request]:
    """Have a span of a request in the block, which ends as the block does."""
    if "opentelemetry.trace" not in sys.modules:
        yield Request({}, lambda name, value: None)
        return
    from opentelemetry import propagate, trace

    attributes = {"http.request.method": method, "url.path": path}
    with trace.get_tracer("raycd.client").start_as_current_span(
        method, kind=trace.SpanKind.CLIENT, attributes=attributes
    ) as span:
        headers: dict[str, str] = {}
        propagate.inject(headers)
        yield Request(headers, span.set_attribute)
