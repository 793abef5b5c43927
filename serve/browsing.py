"""GET /v1/info, /v1/gallery and /v1/images: what there is, without a search."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import quote

import numpy as np
from fastapi import APIRouter, Depends, Query, Request, Response

from raycd import __version__
from raycd.api import GalleryPage, Info, Item, Limits
from raycd.gallery.view import View
from raycd.index.structure import Mask
from serve import filters, problems
from serve.wellformed import known_parameters

if TYPE_CHECKING:
    from serve.service import SearchService

PAGE = 48  # images of a page that names no limit
VALUES = 50  # of an attribute, the most frequent ones, that /v1/info lists
_CACHED = "private, max-age=3600"
_ASKED_FOR = (
    "private, no-cache"  # a picture that may be replaced or removed: the browser asks each time
)

VERSION = "Raycd-Gallery-Version"  # header of what has no body of ours
MinVersion = Annotated[
    int, Query(ge=0, description="wait until this version of the gallery, which a write has told")
]


def thumbnail(image_id: str) -> str:
    """Where an image's thumbnail is, relative to the service."""
    return f"v1/images/{quote(image_id, safe='')}"


def router(service: SearchService) -> APIRouter:
    """The routes that show."""
    routes = APIRouter(tags=["gallery"], dependencies=[Depends(known_parameters)])

    @routes.get("/v1/info", responses=problems.responses(400, 422))
    async def info() -> Info:
        """The model, the index, the limits and what can be filtered by."""
        engine = service.engine
        view = engine.view
        return Info(
            version=__version__,
            model=engine.model,
            index=engine.index_info(view),
            limits=limits(service),
            default_top_k=service.args.top_k,
            image_url=service.args.image_url,
            live=service.writer is not None,
            bundle=service.bundle_info(),
            categories=view.category_counts,
            attributes={
                name: dict(islice(values.items(), VALUES))
                for name, values in view.attribute_counts.items()
            },
            example_texts=engine.example_texts,
        )

    @routes.get("/v1/gallery", responses=problems.responses(400, 422, 503))
    async def page(
        offset: Annotated[int, Query(ge=0)] = 0,
        limit: Annotated[int, Query(ge=1)] = PAGE,
        category: Annotated[
            list[str], Query(description="one of these categories; may repeat")
        ] = [],  # noqa: B006
        attribute: Annotated[list[str], Query(description="name:value; may repeat")] = [],  # noqa: B006
        newest: Annotated[bool, Query(description="the newest images first")] = False,
        min_version: MinVersion = 0,
    ) -> GalleryPage:
        """A page of the gallery, in its order."""
        if limit > service.args.max_page:
            most = service.args.max_page
            raise problems.beyond(
                "max_page",
                "too many images",
                got=limit,
                most=most,
                field="limit",
                do="page with offset",
            )
        wanted = _attributes(attribute)
        asked = len(category) + len(attribute)
        if asked > service.args.max_filters:
            most = service.args.max_filters
            raise problems.beyond(
                "max_filters", "too many filters", got=asked, most=most, do="ask for fewer"
            )
        async with service.deadline():
            view = (await service.reached(min_version)).view
            with service.browsing.slot():
                shown = await service.aside(
                    lambda: _page(view, view.mask(category, wanted), offset, limit, newest)
                )
                if category or wanted:
                    shown.warnings = await service.aside(
                        lambda: filters.warnings(view, category, wanted)
                    )
                return shown

    @routes.get(
        "/v1/images/{image_id:path}",
        response_class=Response,
        responses={
            200: {"content": {"image/jpeg": {}}},
            304: {},
            **problems.responses(400, 404, 422, 503),
        },
    )
    async def image(
        image_id: str,
        request: Request,
        size: Literal["thumbnail", "original"] = "thumbnail",
        min_version: MinVersion = 0,
    ) -> Response:
        """The picture of an image: a small JPEG, or its file."""
        make = service.pictures.thumbnail if size == "thumbnail" else service.pictures.original
        async with service.deadline():
            view = (await service.reached(min_version)).view
            with service.browsing.slot():
                picture = await service.aside(lambda: make(view, image_id))
        headers = {
            "ETag": picture.etag,
            VERSION: str(view.version),
            "Cache-Control": _CACHED if service.writer is None else _ASKED_FOR,
        }
        known = ",".join(request.headers.getlist("if-none-match")).split(",")
        if {picture.etag, "*"} & {tag.strip().removeprefix("W/") for tag in known}:
            return Response(status_code=304, headers=headers)
        return Response(picture.data, media_type=picture.media_type, headers=headers)

    return routes


def _page(view: View, mask: Mask | None, offset: int, limit: int, newest: bool) -> GalleryPage:
    places = np.flatnonzero(view.live if mask is None else mask)
    shown = (places[::-1] if newest else places)[offset : offset + limit].tolist()
    items = [_item(view, place) for place in shown]
    return GalleryPage(items=items, total=len(places), offset=offset, version=view.version)


def _item(view: View, place: int) -> Item:
    image_id = view.image_id(place)
    return Item(
        image_id=image_id,
        category=view.category(place),
        attributes=view.attributes(place),
        thumbnail=thumbnail(image_id),
    )


def limits(service: SearchService) -> Limits:
    """What the service takes."""
    args = service.args
    return Limits(
        body_bytes=args.max_body_bytes,
        image_pixels=args.max_pixels,
        image_min_side=args.min_side,
        formats=list(args.formats),
        text_characters=args.max_text,
        top_k=args.max_top_k,
        offset=args.max_offset,
        batch=args.max_batch,
        page=args.max_page,
        import_lines=args.max_import,
        attributes=args.max_attributes,
    )


def _attributes(pairs: list[str]) -> dict[str, list[str]]:
    """name:value, repeated -> name -> values."""
    wanted: dict[str, list[str]] = {}
    for pair in pairs:
        name, colon, value = pair.partition(":")
        if not colon or not name:
            raise problems.invalid(
                [{"loc": ("attribute",), "msg": f"got {pair!r}, expected name:value"}]
            )
        wanted.setdefault(name, []).append(value)
    return wanted
