"""What every request passes before the routes: ASGI middlewares that count, refuse and repair."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api import problems
from serve.api.problems import ProblemError
from serve.errors import RequestError
from serve.security.asgi import HttpMiddleware, route_path, split_gallery

OTHER = "other"  # where there is no such route, or no such gallery
CLIENT_GONE = 499  # nginx's status of a request whose client has gone before its answer


class InFlight:
    """The requests under way in a replica. Used from one event loop."""

    def __init__(self) -> None:
        self.count, self.draining = 0, False

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count one more request while the block runs."""
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1

    async def drain(self, seconds: float) -> bool:
        """Refuse all that comes from now on, and wait until nothing is under way.

        Returns whether anything was.
        """
        self.draining, some = True, self.count > 0
        end = asyncio.get_running_loop().time() + seconds
        while self.count and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.02)
        return some


class RequestMetrics(Protocol):
    """What records requests."""

    def request(self, path: str, status: int, seconds: float, gallery: str) -> None:
        """Record a request that was answered."""


class Requests(HttpMiddleware):
    """Counts and measures each request by gallery and route, never by its path; 503 while draining.

    The route of a gallery is told as that of the default one.
    """

    def __init__(
        self,
        app: ASGIApp,
        in_flight: InFlight,
        metrics: RequestMetrics,
        galleries: Collection[str] = (),
    ) -> None:
        super().__init__(app)
        self.in_flight, self.metrics, self.galleries = in_flight, metrics, galleries

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, status = time.perf_counter(), CLIENT_GONE

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if self.in_flight.draining:
                ending = "the service is ending; ask another one, or again in a moment"
                await problems.response(problems.busy(ending))(scope, receive, watched)
            else:
                with self.in_flight.counted():
                    await self.app(scope, receive, watched)
        finally:
            _, path = split_gallery(getattr(scope.get("route"), "path", OTHER))
            gallery, _ = split_gallery(route_path(scope))
            known = gallery if gallery in self.galleries else OTHER
            self.metrics.request(path, status, time.perf_counter() - began, known)


class ErrorResponses(HttpMiddleware):
    """Answers 500 to errors that no route answers; 499, which nobody reads, to who has gone."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = False

        async def watched(message: Message) -> None:
            nonlocal began
            began = began or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except ClientDisconnect:
            if not began:
                await Response(status_code=CLIENT_GONE)(scope, receive, send)
        except Exception as error:
            route = getattr(scope.get("route"), "path", "a path of no route")
            answer = problems.logged(error, f"{scope.get('method', '')} {route}")
            if began:  # the client must not take what it has for the whole
                raise ConnectionAbortedError("the answer broke off: its error is logged") from None
            await problems.response(answer)(scope, receive, send)


class Checked(HttpMiddleware):
    """Answers with the error that `check` raises of a request, before any of its body is read."""

    def __init__(self, app: ASGIApp, check: Callable[[Scope], None]) -> None:
        super().__init__(app)
        self.check = check

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self.check(scope)
        except RequestError as error:
            await problems.response(problems.of_request(error))(scope, receive, send)
        except ProblemError as problem:
            await problems.response(problem)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


class HeadAsGet(HttpMiddleware):
    """Answers HEAD as GET is answered, without the body."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        asked = {**scope, "method": "GET"}
        try:
            await self.app(asked, receive, without_body)
        finally:
            scope["route"] = asked.get("route")  # for whoever counts by it


class BodyLimit(HttpMiddleware):
    """Answers 413 to bodies of more than `max_bytes`, by their header if it is honest, or by count.

    Paths in `streamed`, of any gallery, may send any number of bytes: their routes count for
    themselves.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, streamed: Sequence[str] = ()) -> None:
        super().__init__(app)
        self.max_bytes, self.streamed = max_bytes, streamed

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if split_gallery(route_path(scope))[1] in self.streamed:
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "0")
        if not declared.isdecimal() or int(declared) > self.max_bytes:
            await problems.response(problems.too_large(self.max_bytes))(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise problems.too_large(self.max_bytes)
            return message

        await self.app(scope, counted, send)
