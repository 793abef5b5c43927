"""What answers a request: the gallery that its path is of. Dependencies of routes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Path

from serve.api.intake import Intake
from serve.args import DEFAULT
from serve.errors import NoSuchGallery
from serve.galleries import Galleries
from serve.monitoring.metrics import Metrics
from serve.replica import Replica


@dataclass(frozen=True)
class Served:
    """A gallery as its routes see it."""

    replica: Replica
    intake: Intake
    """Bodies that come in for this gallery: its slow senders cut off no other's."""
    metrics: Metrics


Asked = Any  # as FastAPI's Depends: the default of a route's parameter `to: Served`


def by_name(galleries: Galleries, metrics: Metrics) -> dict[str, Served]:
    """Return all galleries."""
    args = galleries.args
    return {
        replica.gallery: Served(
            replica,
            Intake(2 * args.max_queue, args.body_timeout_s),
            metrics.of(replica.gallery),
        )
        for replica in galleries
    }


def default(served: Mapping[str, Served]) -> Asked:
    """Return what gives routes the default gallery."""

    async def asked() -> Served:
        return served[DEFAULT]

    return Depends(asked)


def named(served: Mapping[str, Served]) -> Asked:
    """Return what gives routes the gallery that their path names. It raises NoSuchGallery."""

    async def asked(gallery: Annotated[str, Path(description="name of a gallery")]) -> Served:
        if gallery not in served:
            raise NoSuchGallery(gallery)
        return served[gallery]

    return Depends(asked)
