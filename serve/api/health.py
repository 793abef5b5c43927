"""GET /healthz and /readyz."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter

from raycd.api import Health
from serve.api import problems
from serve.api.served import Asked, Served
from serve.errors import format_error
from serve.replica import CANARY_S, Replica

_log = logging.getLogger("ray.serve")

FRESH_S = 1.0  # seconds for which an answer is shared with others that ask


def alive() -> APIRouter:
    """Return the route that says whether the process runs."""
    routes = APIRouter(tags=["health"])

    @routes.get("/healthz")
    async def healthz() -> Health:
        """Tell that the process runs."""
        return Health()

    return routes


def router(asked: Asked, prefix: str, count_replicas: Callable[[], tuple[int, int]]) -> APIRouter:
    """Return the route that says whether the gallery that is asked can be searched."""
    routes = APIRouter(prefix=prefix, tags=["health"])
    canaries: dict[str, Shared] = {}

    @routes.get("/readyz", responses=problems.responses(503))
    async def readyz(to: Served = asked) -> Health:
        """Answer a query of our own here, and see that every other replica answers its own.

        Whoever asks within a second shares it; `age_s` says how old it is. A SQLite database is
        still the file that was opened.
        """
        replica = to.replica
        if (shared := canaries.get(replica.gallery)) is None:
            shared = canaries[replica.gallery] = Shared(lambda: _ready(replica, count_replicas))
        running = await shared()
        return Health(status="ready", replicas=running, age_s=round(shared.age_s, 3))

    return routes


async def _ready(replica: Replica, count_replicas: Callable[[], tuple[int, int]]) -> int:
    """Return how many replicas answer. Raises ProblemError where one does not."""
    try:
        await replica.check_gallery()
    except TimeoutError as error:
        _log.error("the gallery was not checked within %g s", CANARY_S)
        raise problems.busy(
            "the gallery's database, or its search engine, does not answer"
        ) from error
    try:
        await replica.check_canary()
        async with asyncio.timeout(CANARY_S):
            running, wanted = await asyncio.to_thread(count_replicas)
    except Exception as error:
        _log.error("the canary query failed: %s", format_error(error))
        raise problems.busy("a replica does not answer its canary query; see the log") from error
    if running < wanted:
        raise problems.busy(f"{running} of {wanted} replicas answer")
    return running


class Shared:
    """Work that is done once for all that ask at once. Used from one event loop."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, int]]) -> None:
        self._work = work
        self._began = 0.0
        self._found: asyncio.Future[int] | None = None

    @property
    def age_s(self) -> float:
        """Seconds since the last work began."""
        return time.monotonic() - self._began

    async def __call__(self) -> int:
        """Return or raise what the work does: that under way or of the last FRESH_S, else anew."""
        if self._found is None or (self._found.done() and self.age_s > FRESH_S):
            self._began, self._found = time.monotonic(), asyncio.ensure_future(self._work())
        return await asyncio.shield(self._found)  # whoever goes away ends it for nobody else
