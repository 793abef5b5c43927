"""PUT and DELETE /v1/gallery/{image_id}: one image of the live gallery."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Depends, Request, Response

from raycd.api import Written
from raycd.data import images
from raycd.gallery.records import Done
from serve import image_body, problems
from serve.image_body import Given
from serve.wellformed import known_parameters
from serve.writer import Picture, Writer

if TYPE_CHECKING:
    from serve.service import SearchService

MAX_ID = 512  # characters of an image's id
UNKNOWN = "; whether the change was made is unknown: send it again"
_ERRORS = problems.responses(400, 403, 404, 408, 409, 413, 415, 422, 503, 507)


def router(service: SearchService) -> APIRouter:
    """The routes that change one image."""
    routes = APIRouter(tags=["gallery"], dependencies=[Depends(known_parameters)])

    @routes.put(
        "/v1/gallery/{image_id:path}",
        response_model=Written,
        responses={201: {"model": Written}, **_ERRORS},
        openapi_extra=image_body.OPENAPI,
    )
    async def put(image_id: str, request: Request, response: Response) -> Written:
        """Add an image to the gallery, or replace the one of that id. Answered when it is on the
        disk.
        """
        writer = writable(service)
        check_new_id(image_id)
        service.writes.check()
        await service.reading.whole(request, service.args.max_attributes)
        with service.writes.slot():
            async with service.deadline(then=UNKNOWN):
                given = await image_body.read(request, service.args, service.engine)
                done = await put_one(service, writer, image_id, given)
        response.status_code = 200 if done.existed else 201
        return Written(image_id=image_id, version=done.version, created=not done.existed)

    @routes.delete("/v1/gallery/{image_id:path}", responses=_ERRORS)
    async def delete(image_id: str) -> Written:
        """Remove an image, its picture included. Answered when that is on the disk."""
        writer = writable(service)
        check_id(image_id)
        with service.writes.slot():
            async with service.deadline(then=UNKNOWN):
                done = await writer.delete(image_id, service.engine)
        if not done.existed:
            raise problems.ProblemError(404, f"the gallery has no image {image_id!r}")
        return Written(image_id=image_id, version=done.version)

    return routes


def writable(service: SearchService) -> Writer:
    """What writes. Raises ProblemError where the gallery does not change."""
    if service.writer is None:
        raise problems.ProblemError(
            403, "this service's gallery does not change: start it with a database (gallery)"
        )
    return service.writer


async def put_one(service: SearchService, writer: Writer, image_id: str, given: Given) -> Done:
    """Decode, encode, commit. Raises BrokenImage, ProblemError and GalleryError."""
    engine, file = service.engine, given.file
    if file is not None and not writer.keeps_pictures:
        raise problems.ProblemError(
            403, "this service keeps no pictures: start it with a place for them (pictures)"
        )
    picture = None if file is None else await service.aside(lambda: _decoded(service, file), file)
    return await writer.put(
        image_id,
        engine,
        categories=given.asked.category or engine.default_category,
        attributes=given.asked.attributes,
        picture=picture,
        feature=given.feature,
    )


def _decoded(service: SearchService, file: bytes) -> Picture:
    image = service.decoded(file)
    return Picture(file, images.format_of(file).lower(), service.engine.searcher.preprocess(image))


def check_id(image_id: str) -> None:
    """Raises ProblemError for an id that nobody could type or read."""
    wrong = not image_id.strip() or len(image_id) > MAX_ID or not image_id.isprintable()
    if wrong or image_id != image_id.strip():
        expected = f"1 to {MAX_ID} printable characters without spaces around them"
        raise problems.invalid(
            [{"loc": ("image_id",), "msg": f"got {len(image_id)} characters, expected {expected}"}]
        )


def check_new_id(image_id: str) -> None:
    """Raises ProblemError, too, for an id that has no address: browsers and clients take it for a
    folder's.
    """
    check_id(image_id)
    if image_id in (".", ".."):
        raise problems.invalid(
            [{"loc": ("image_id",), "msg": f"{image_id} cannot be an id: no address leads to it"}]
        )
