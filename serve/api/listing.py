"""GET /v1/galleries: which galleries there are."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request

from raycd.api import GalleryList, NamedGallery
from serve.api import problems
from serve.api.gallery import root
from serve.api.wellformed import known_parameters
from serve.args import NO_GALLERY
from serve.galleries import Galleries
from serve.security.asgi import GALLERIES
from serve.security.guard import key_of


def router(galleries: Galleries) -> APIRouter:
    """Return the route that lists the galleries."""
    routes = APIRouter(tags=["gallery"], dependencies=[Depends(known_parameters)])

    @routes.get(GALLERIES, responses=problems.responses(400, 422))
    async def list_galleries(request: Request) -> GalleryList:
        """Return the galleries that the asking key is for; without keys, all."""
        key = key_of(request.scope)
        opened = [name for name in galleries.names if key is None or key.opens(name)]
        return GalleryList(galleries=[_named(galleries, name) for name in opened])

    return routes


def _named(galleries: Galleries, name: str) -> NamedGallery:
    live = galleries.args.of(name).gallery != NO_GALLERY
    said = {"name": name, "path": root(name), "live": live}
    if reason := galleries.refused.get(name):
        return NamedGallery(**said, refused=reason)
    engine = galleries[name].engine
    return NamedGallery(
        **said,
        size=len(engine.view),
        bundle=engine.model.bundle,
        encoder=engine.model.encoder,
    )
