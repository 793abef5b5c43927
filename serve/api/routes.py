"""The HTTP interface as one application: the routes, and what stands before all of them."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, FastAPI
from fastapi_offline import FastAPIOffline

from raycd import __version__
from serve.api import (
    embed,
    events,
    gallery,
    guard,
    health,
    imports,
    listing,
    page,
    problems,
    search,
    wellformed,
    write,
)
from serve.api.middleware import BodyLimit, Checked, ErrorResponses, HeadAsGet, InFlight, Requests
from serve.api.served import Asked, Serving
from serve.api.traced import Traced
from serve.galleries import Galleries
from serve.monitoring.metrics import Metrics
from serve.security.asgi import GALLERIES


def build_app(
    galleries: Galleries,
    metrics: Metrics,
    in_flight: InFlight,
    count_replicas: Callable[[], tuple[int, int]],
) -> FastAPI:
    """Return the ASGI application of a replica.

    Args:
        galleries: What answers.
        metrics: What records requests and searches.
        in_flight: The requests under way.
        count_replicas: Returns how many replicas answer, and how many there should be.

    Raises:
        ConfigError: The file of API keys cannot be read.
    """
    app = FastAPIOffline(
        title="raycd",
        version=__version__,
        summary="Composed image retrieval: an image and a sentence",
        redoc_url=None,
        # Traced makes the span of a request: FastAPI's own would pass over Ray Serve's.
        telemetry={"tracing": False},
    )
    args = galleries.args
    problems.add_handlers(app)
    serving = Serving(galleries, metrics)
    default, named, one = serving.default(), serving.named(), f"{GALLERIES}/{{gallery}}"
    for router in (*_of_gallery(default, "/v1"), health.router(default, "", count_replicas)):
        app.include_router(router)
    app.include_router(health.alive())
    app.include_router(listing.router(galleries))
    for router in (*_of_gallery(named, one), health.router(named, one, count_replicas)):
        app.include_router(router, responses=problems.responses(404, 503))
    page.add(app)
    # The last one that is added is the first that a request passes.
    app.add_middleware(BodyLimit, max_bytes=args.max_body_bytes, streamed=(f"/v1{imports.PATH}",))
    app.add_middleware(HeadAsGet)
    app.add_middleware(Checked, check=wellformed.check)
    guard.add(app, args)
    app.add_middleware(ErrorResponses)
    app.add_middleware(page.PageHeaders, elsewhere=bool(args.cors_origins))
    app.add_middleware(Requests, in_flight=in_flight, metrics=metrics, galleries=galleries.names)
    guard.add_origins(app, args)
    app.add_middleware(Traced)
    return app


def _of_gallery(asked: Asked, prefix: str) -> list[APIRouter]:
    """Return all that the gallery which is asked answers, under a prefix of paths."""
    rooms = (search, embed, gallery, imports, write, events)
    return [room.router(asked, prefix) for room in rooms]
