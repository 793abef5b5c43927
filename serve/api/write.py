"""PUT and DELETE /v1/gallery/{image_id}: one image of the live gallery."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request, Response

from raycd.api import Written
from raycd.data import images
from raycd.gallery.records import USABLE_ID, Done, is_usable_id
from serve.api import image_body, problems
from serve.api.image_body import SentImage
from serve.api.problems import ProblemError
from serve.api.served import Asked, Served
from serve.api.wellformed import known_parameters
from serve.live.writer import Upload, Writer
from serve.replica import Replica

UNKNOWN = "; whether the change was made is unknown: send it again"
_ERRORS = problems.responses(400, 403, 404, 408, 409, 413, 415, 422, 503, 507)


def router(asked: Asked, prefix: str) -> APIRouter:
    """Return the routes that change one image of the gallery that is asked."""
    routes = APIRouter(prefix=prefix, tags=["gallery"], dependencies=[Depends(known_parameters)])

    @routes.put(
        "/gallery/{image_id:path}",
        response_model=Written,
        responses={201: {"model": Written}, **_ERRORS},
        openapi_extra=image_body.OPENAPI,
    )
    async def put(
        image_id: str, request: Request, response: Response, to: Served = asked
    ) -> Written:
        """Add an image to the gallery, or replace the one of that id. Answered when it is on the
        disk.
        """
        replica = to.replica
        writer = writable(replica)
        check_new_id(image_id)
        replica.writes.check()
        await to.intake.read(request, replica.args.max_attributes)
        with replica.writes.slot():
            async with replica.deadline(then=UNKNOWN):
                sent = await image_body.read(request, replica.args, replica.engine)
                done = await put_one(replica, writer, image_id, sent)
        response.status_code = 200 if done.existed else 201
        return Written(image_id=image_id, version=done.version, created=not done.existed)

    @routes.delete("/gallery/{image_id:path}", responses=_ERRORS)
    async def delete(image_id: str, to: Served = asked) -> Written:
        """Remove an image, its picture included. Answered when that is on the disk."""
        replica = to.replica
        writer = writable(replica)
        missing = ProblemError(404, f"the gallery has no image {image_id!r}")
        if "\0" in image_id:  # which PostgreSQL refuses, together with the writes of others
            raise missing
        with replica.writes.slot():
            async with replica.deadline(then=UNKNOWN):
                done = await writer.delete(image_id, replica.engine.searcher)
        if not done.existed:
            raise missing
        return Written(image_id=image_id, version=done.version)

    return routes


def writable(replica: Replica) -> Writer:
    """Return what writes. Raises ProblemError where the gallery does not change."""
    if replica.writer is None:
        raise ProblemError(
            403, "this service's gallery does not change: start it with a database (gallery)"
        )
    return replica.writer


async def put_one(replica: Replica, writer: Writer, image_id: str, sent: SentImage) -> Done:
    """Decode, encode and commit an image. Raises BrokenImage, ProblemError and GalleryError."""
    engine, file = replica.engine, sent.file
    if file is not None and not writer.keeps_pictures:
        raise ProblemError(
            403, "this service keeps no pictures: start it with a folder for them (pictures)"
        )

    def decoded(file: bytes) -> Upload:
        pixels = engine.searcher.preprocess(replica.decode(file, engine))
        return Upload(file, images.format_of(file).lower(), pixels)

    upload = None if file is None else await replica.take_upload(lambda: decoded(file))
    return await writer.put(
        image_id,
        engine.searcher,
        categories=sent.asked.category or engine.default_category,
        attributes=sent.asked.attributes,
        upload=upload,
        feature=sent.feature,
    )


def check_new_id(image_id: str) -> None:
    """Raise ProblemError for an id that nobody could write or read, or that no URL leads to."""
    if image_id in (".", ".."):  # clients resolve it as a folder
        raise problems.wrong_field(
            "image_id", f"{image_id} cannot be an id: no address leads to it"
        )
    if not is_usable_id(image_id):
        raise problems.wrong_field(
            "image_id", f"got {len(image_id)} characters, expected {USABLE_ID}"
        )
