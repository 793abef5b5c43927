"""GET /healthz and /readyz."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter

from raycd.api import Health
from serve import failure, problems

if TYPE_CHECKING:
    from serve.service import SearchService

_log = logging.getLogger("ray.serve")

CANARY_S = 10.0  # within which a replica answers its own query
FRESH_S = 1.0  # that what was found is told to others


def router(service: SearchService) -> APIRouter:
    """The routes that tell whether the service runs and answers."""
    routes = APIRouter(tags=["health"])
    shared = Shared(lambda: _ready(service))

    @routes.get("/healthz")
    async def healthz() -> Health:
        """The process runs."""
        return Health()

    @routes.get("/readyz", responses=problems.responses(503))
    async def readyz() -> Health:
        """A query of our own is encoded and searched here, and every other replica answers its own.

        Whoever asks within a second shares it; `age_s` says how old it is. A SQLite database is
        still the file that was opened.
        """
        running = await shared()
        return Health(status="ready", replicas=running, age_s=round(shared.age_s, 3))

    return routes


async def _ready(service: SearchService) -> int:
    """Replicas that answer, this one among them. Raises ProblemError where it does not, or one is
    missing.
    """
    await service.check_gallery()
    try:
        await service.canary()
        async with asyncio.timeout(CANARY_S):
            running, wanted = await asyncio.to_thread(service.replicas)
    except Exception as error:
        _log.error("the canary query failed: %s", failure.told(error))
        raise problems.busy("a replica does not answer its canary query; see the log") from error
    if running < wanted:
        raise problems.busy(f"{running} of {wanted} replicas answer")
    return running


class Shared:
    """Does once what many ask for at once, however many they are. Used from one event loop."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, int]]) -> None:
        self._work = work
        self._began = 0.0
        self._found: asyncio.Future[int] | None = None

    @property
    def age_s(self) -> float:
        """Seconds since the work that was asked for last has begun."""
        return time.monotonic() - self._began

    async def __call__(self) -> int:
        """What the work gives, or raises: that under way, or done less than FRESH_S ago, or done
        now.
        """
        if self._found is None or (self._found.done() and self.age_s > FRESH_S):
            self._began, self._found = time.monotonic(), asyncio.ensure_future(self._work())
        return await asyncio.shield(self._found)  # whoever goes away takes it from nobody
