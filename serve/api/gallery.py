"""GET /v1/info, /v1/gallery and /v1/images: what there is, without a search."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Depends, Query, Request, Response

from raycd import __version__
from raycd.api import GalleryFilters, GalleryPage, Info, Item, Limits, NumberRange
from raycd.gallery.state import Image, State
from serve.api import bodies, filters, problems
from serve.api.search_body import check_filters
from serve.api.served import Asked, Served
from serve.api.wellformed import known_parameters
from serve.args import DEFAULT, ServeArgs
from serve.replica import Replica
from serve.security.asgi import GALLERIES

PAGE = 48  # images of a page that names no limit
MAX_OFFSET = 2**53 - 1  # of a page: beyond any gallery, and within every database's integers
VALUES = 50  # of an attribute, the most frequent ones, that /v1/info lists
VERSION = "Raycd-Gallery-Version"  # header of what has no body of ours

# How long a browser keeps a picture. One that may change is asked for each time.
_FIXED, _CHANGING = "private, max-age=3600", "private, no-cache"

MinVersion = Annotated[
    int,
    Query(ge=0, description="wait until this version of the gallery, which a write has returned"),
]
Categories = Annotated[list[str], Query(description="one of these categories; may repeat")]
Attribute = Annotated[
    list[str],
    Query(
        description="name:value, of a name without a colon (others go into attributes); may repeat"
    ),
]
Attributes = Annotated[
    str, Query(description='as those of a search, in JSON: {"price": {"gte": 10, "lt": 50}}')
]


def router(asked: Asked, prefix: str) -> APIRouter:
    """Return the routes that show the gallery that is asked."""
    routes = APIRouter(prefix=prefix, tags=["gallery"], dependencies=[Depends(known_parameters)])

    @routes.get("/info", responses=problems.responses(400, 422, 503))
    async def info(to: Served = asked) -> Info:
        """Return the model, the index, the limits and what can be filtered by."""
        return await _info(to.replica)

    @routes.get("/gallery", responses=problems.responses(400, 422, 503))
    async def page(
        offset: Annotated[int, Query(ge=0, le=MAX_OFFSET)] = 0,
        limit: Annotated[
            int | None, Query(ge=1, description=f"at most max_page; {PAGE} where that allows it")
        ] = None,
        category: Categories = [],  # noqa: B006  # FastAPI copies it
        attribute: Attribute = [],  # noqa: B006
        attributes: Attributes = "",
        newest: Annotated[bool, Query(description="the newest images first")] = False,
        min_version: MinVersion = 0,
        to: Served = asked,
    ) -> GalleryPage:
        """Return a page of the gallery, in its order."""
        replica = to.replica
        count = _count(replica.args, limit)
        wanted = _filters(replica.args, category, attribute, attributes)
        async with replica.deadline():
            view = (await replica.wait_for_version(min_version)).view

            def shown() -> GalleryPage:
                found = _page(
                    replica.gallery, view, wanted, offset=offset, limit=count, newest=newest
                )
                if wanted.category or wanted.attributes:
                    found.warnings = filters.warnings(view, wanted.category, wanted.attributes)
                return found

            with replica.browsing.slot():
                return await replica.list_gallery(shown)

    @routes.get(
        "/images/{image_id:path}",
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
        to: Served = asked,
    ) -> Response:
        """Return the picture of an image: a small JPEG, or its file."""
        return await _picture(to.replica, request, image_id, size, min_version)

    return routes


def root(gallery: str) -> str:
    """Return the URL that the paths of a gallery begin with, relative to the service's."""
    return "v1" if gallery == DEFAULT else f"{GALLERIES}/{gallery}".removeprefix("/")


def thumbnail_url(image_id: str, gallery: str) -> str:
    """Return the URL of an image's thumbnail, relative to the service's."""
    return f"{root(gallery)}/images/{quote(image_id, safe='')}"


def limits(args: ServeArgs) -> Limits:
    """Return what the service accepts."""
    return Limits(
        body_bytes=args.max_body_bytes,
        image_pixels=args.max_pixels,
        image_min_side=args.min_side,
        formats=list(args.formats),
        text_characters=args.max_text,
        images=args.max_images,
        top_k=args.max_top_k,
        offset=args.max_offset,
        rerank_depth=args.max_rerank_depth,
        filters=args.max_filters,
        batch=args.max_batch,
        page=args.max_page,
        import_lines=args.max_import,
        events=args.max_events,
        attributes=args.max_attributes,
    )


def _offered(view: State) -> dict[str, Any]:
    """Return what can be filtered by. After a change the whole gallery is counted."""
    return {
        "categories": dict(view.category_counts),
        "attributes": {
            name: dict(islice(values.items(), VALUES))
            for name, values in view.attribute_counts.items()
        },
        "ranges": {
            name: NumberRange(min=smallest, max=largest)
            for name, (smallest, largest) in view.ranges.items()
        },
    }


async def _info(replica: Replica) -> Info:
    args, engine = replica.args, replica.engine
    view, bundle = engine.view, replica.bundle_info()
    async with replica.deadline():
        with replica.browsing.slot():
            offered = await replica.list_gallery(lambda: _offered(view))
    return Info(
        version=__version__,
        gallery=replica.gallery,
        model=engine.model,
        index=engine.index_info(view),
        limits=limits(args),
        default_top_k=args.top_k,
        image_url=args.image_url,
        live=replica.writer is not None,
        events=replica.recorder is not None,
        bundle=bundle,
        second=replica.second_info(),
        example_texts=engine.example_texts,
        **offered,
    )


def _count(args: ServeArgs, limit: int | None) -> int:
    """Return how many images a page has. Raises ProblemError where more are asked for than may."""
    if limit is None:
        return min(PAGE, args.max_page)
    if limit > args.max_page:
        raise problems.beyond(
            "max_page",
            "too many images",
            got=limit,
            most=args.max_page,
            field="limit",
            do="page with offset",
        )
    return limit


def _filters(
    args: ServeArgs, category: list[str], pairs: list[str], conditions: str
) -> GalleryFilters:
    """Return what a page shows, of name:value pairs and JSON. Raises ProblemError."""
    asked = bodies.from_text("attributes", conditions)
    if not isinstance(asked, dict):
        raise problems.wrong_field("attributes", "is not an object of names and filters")
    values: dict[str, list[str]] = {}
    for pair in pairs:
        name, colon, value = pair.partition(":")
        if not colon or not name:
            raise problems.wrong_field("attribute", f"got {pair!r}, expected name:value")
        values.setdefault(name, []).append(value)
    if twice := sorted(values.keys() & asked.keys()):
        raise problems.wrong_field("attributes", f"{twice[0]} is in attribute, too: give it once")
    fields = {"category": category, "attributes": values | asked}
    check_filters(fields, args.max_filters)
    return bodies.validated(GalleryFilters, fields)


def _page(
    gallery: str, view: State, wanted: GalleryFilters, *, offset: int, limit: int, newest: bool
) -> GalleryPage:
    shown, total = view.page(
        wanted.category, wanted.attributes, offset=offset, limit=limit, newest=newest
    )
    items = [_item(image, gallery) for image in shown]
    return GalleryPage(items=items, total=total, offset=offset, version=view.version)


def _item(image: Image, gallery: str) -> Item:
    return Item(
        image_id=image.image_id,
        category=image.category,
        attributes=dict(image.attributes),
        thumbnail=thumbnail_url(image.image_id, gallery),
    )


async def _picture(
    replica: Replica, request: Request, image_id: str, size: str, min_version: int
) -> Response:
    make = replica.pictures.thumbnail if size == "thumbnail" else replica.pictures.original
    async with replica.deadline():
        view = (await replica.wait_for_version(min_version)).view
        with replica.browsing.slot():
            picture = await replica.read_picture(
                lambda: make(replica.view_with(image_id, view), image_id)
            )
    headers = {
        "ETag": picture.etag,
        VERSION: str(view.version),
        "Cache-Control": _FIXED if replica.writer is None else _CHANGING,
    }
    known = ",".join(request.headers.getlist("if-none-match")).split(",")
    if {picture.etag, "*"} & {tag.strip().removeprefix("W/") for tag in known}:
        return Response(status_code=304, headers=headers)
    return Response(picture.data, media_type=picture.media_type, headers=headers)
