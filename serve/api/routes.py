"""The HTTP interface as one application: the routes, and what stands before all of them."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from raycd import __version__
from serve.api import (
    embed,
    events,
    gallery,
    guard,
    health,
    imports,
    page,
    problems,
    search,
    wellformed,
    write,
)
from serve.api.intake import Intake
from serve.api.middleware import BodyLimit, Checked, Failures, HeadAsGet, InFlight, Requests
from serve.api.traced import Traced
from serve.monitoring.metrics import Metrics
from serve.replica import Replica


def build_app(
    replica: Replica,
    metrics: Metrics,
    in_flight: InFlight,
    count_replicas: Callable[[], tuple[int, int]],
) -> FastAPI:
    """Return the ASGI application of a replica.

    Args:
        replica: What answers.
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
    args = replica.args
    intake = Intake(2 * args.max_queue, args.body_timeout_s)
    problems.add_handlers(app)
    app.include_router(search.router(replica, intake, metrics))
    app.include_router(embed.router(replica, intake))
    app.include_router(gallery.router(replica))
    app.include_router(imports.router(replica))
    app.include_router(write.router(replica, intake))
    app.include_router(events.router(replica, intake))
    app.include_router(health.router(replica, count_replicas))
    page.add(app)
    # The last one that is added is the first that a request passes.
    app.add_middleware(BodyLimit, max_bytes=args.max_body_bytes, streamed=(imports.PATH,))
    app.add_middleware(HeadAsGet)
    app.add_middleware(Checked, check=wellformed.check)
    guard.add(app, args)
    app.add_middleware(Failures)
    app.add_middleware(page.PageHeaders, elsewhere=bool(args.cors_origins))
    app.add_middleware(Requests, in_flight=in_flight, metrics=metrics)
    app.add_middleware(Traced)
    return app
