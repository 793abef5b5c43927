"""GET /healthz and /readyz."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from fastapi import APIRouter

from raycd.api import Health
from serve import failure, problems

if TYPE_CHECKING:
    from serve.service import SearchService

_log = logging.getLogger("ray.serve")

CANARY_S = 10.0  # within which a replica answers its own query


def router(service: SearchService) -> APIRouter:
    """The routes that tell whether the service runs and answers."""
    routes = APIRouter(tags=["health"])

    @routes.get("/healthz")
    async def healthz() -> Health:
        """The process runs."""
        return Health()

    @routes.get("/readyz", responses=problems.responses(503))
    async def readyz() -> Health:
        """A query of our own is encoded and searched here, and every other replica answers its own.

        A SQLite database is still the file that was opened.
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
        return Health(status="ready", replicas=running)

    return routes
