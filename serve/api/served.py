"""What answers a request: the gallery that its path is of. Dependencies of routes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Path

from serve.api.intake import Intake
from serve.args import DEFAULT
from serve.galleries import Galleries
from serve.monitoring.metrics import Metrics
from serve.replica import Replica

Asked = Any  # as FastAPI's Depends: the default of a route's parameter `to: Served`


@dataclass(frozen=True)
class Served:
    """A gallery as its routes see it."""

    replica: Replica
    intake: Intake
    """Bodies that come in for this gallery: its slow senders cut off no other's."""
    metrics: Metrics


class Serving:
    """What gives routes their gallery."""

    def __init__(self, galleries: Galleries, metrics: Metrics) -> None:
        args, self._galleries = galleries.args, galleries
        self._others = {
            gallery: (Intake(2 * args.max_queue, args.body_timeout_s), metrics.of(gallery))
            for gallery in galleries.names
        }

    def _of(self, gallery: str) -> Served:
        return Served(self._galleries[gallery], *self._others[gallery])

    def default(self) -> Asked:
        """Return what gives the default gallery."""

        async def asked() -> Served:
            return self._of(DEFAULT)

        return Depends(asked)

    def named(self) -> Asked:
        """Return what gives the gallery that the path names. It raises NoSuchGallery, NotLoaded."""

        async def asked(gallery: Annotated[str, Path(description="name of a gallery")]) -> Served:
            return self._of(gallery)

        return Depends(asked)
