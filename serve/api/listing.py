"""GET /v1/galleries: which galleries there are."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request

from raycd.api import GalleryList, NamedGallery
from serve.api import problems
from serve.api.gallery import root
from serve.api.wellformed import known_parameters
from serve.galleries import Galleries
from serve.replica import Replica
from serve.security.asgi import GALLERIES
from serve.security.guard import key_of


def router(galleries: Galleries) -> APIRouter:
    """Return the route that lists the galleries."""
    routes = APIRouter(tags=["gallery"], dependencies=[Depends(known_parameters)])

    @routes.get(GALLERIES, responses=problems.responses(400, 422))
    async def list_galleries(request: Request) -> GalleryList:
        """The galleries that the asking key is for; without keys, all."""
        key = key_of(request.scope)
        opened = [one for one in galleries if key is None or key.opens(one.gallery)]
        return GalleryList(galleries=[_named(one) for one in opened])

    return routes


def _named(replica: Replica) -> NamedGallery:
    engine = replica.engine
    return NamedGallery(
        name=replica.gallery,
        path=root(replica.gallery),
        live=replica.writer is not None,
        size=len(engine.view),
        bundle=engine.model.bundle,
        encoder=engine.model.encoder,
    )
