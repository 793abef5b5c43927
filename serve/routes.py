"""The HTTP interface as one application: the routes, and what stands before all of them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raycd import __version__
from serve import (
    admission,
    browsing,
    failure,
    guard,
    health,
    importing,
    page,
    problems,
    searching,
    wellformed,
    writing,
)

if TYPE_CHECKING:
    from serve.metrics import Metrics
    from serve.service import SearchService


def build_app(service: SearchService) -> FastAPI:
    """The ASGI application of a replica."""
    app = FastAPIOffline(
        title="raycd",
        version=__version__,
        summary="Composed image retrieval: an image and a sentence",
        redoc_url=None,
    )
    problems.add_handlers(app)
    app.include_router(searching.router(service))
    app.include_router(browsing.router(service))
    app.include_router(importing.router(service))
    app.include_router(writing.router(service))
    app.include_router(health.router(service))
    page.add(app)
    app.add_middleware(
        problems.BodyLimit, max_bytes=service.args.max_body_bytes, streamed=(importing.PATH,)
    )
    app.add_middleware(wellformed.WellFormed)
    guard.add(app, service.args)
    app.add_middleware(failure.Failures)
    app.add_middleware(page.Guarded, elsewhere=bool(service.args.cors_origins))
    app.add_middleware(admission.Guarded, door=service.door)
    app.add_middleware(Measured, metrics=service.metrics)
    return app


class Measured:
    """ASGI middleware: counts every request by its route, never by its path, and takes its time."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), failure.CLOSED  # the client has gone before an answer

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self.metrics.request(path, status, time.perf_counter() - began)
