"""GET /healthz and /readyz."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter

from raycd.api import Health
from serve import problems

if TYPE_CHECKING:
    from serve.service import SearchService


def router(service: SearchService) -> APIRouter:
    """The routes that tell whether the service runs and answers."""
    routes = APIRouter(tags=["health"])

    @routes.get("/healthz")
    async def healthz() -> Health:
        """The process runs."""
        return Health()

    @routes.get("/readyz", responses=problems.responses(503))
    async def readyz() -> Health:
        """A query of our own is encoded and searched here, and every other replica answers its own."""
        try:
            await service.canary()
        except Exception as error:
            raise problems.busy("a replica does not answer its canary query; see the log") from error
        running, wanted = await service.aside(service.replicas)
        if running < wanted:
            raise problems.busy(f"{running} of {wanted} replicas answer")
        return Health(status="ready", replicas=running)

    return routes
