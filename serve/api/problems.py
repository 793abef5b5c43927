"""Errors of requests as RFC 9457 problem documents: nothing below serve/api/ knows of statuses."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import JSONResponse
from starlette.routing import Match, Mount

from raycd.api import OTHER_GALLERY, UNKNOWN_GALLERY, FieldError, Problem
from raycd.data.images import BrokenImage
from raycd.errors import DataError, GalleryError, RaycdError
from raycd.filters import CONDITION, VALUES
from raycd.search.history import OtherEncoder
from serve.errors import (
    Busy,
    KeyElsewhere,
    KeyMissing,
    KeyTooWeak,
    NoSuchGallery,
    NoSuchImage,
    NoSuchVersion,
    NotLoaded,
    RequestError,
    UnknownHost,
    UnreadablePicture,
    format_error,
)
from serve.security.fetch import FetchFailed, FetchRefused

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1
MAX_ERRORS = 20  # wrong fields of one request that are named, at most
_LONG = 100  # characters of what a client has named
_FORMS = (VALUES, CONDITION)  # as pydantic tells the two forms of a filter apart

_log = logging.getLogger("ray.serve")

DESCRIPTIONS = {
    400: "The address is not UTF-8, or the body is not what its content type says",
    401: "The API key is missing, unknown or revoked",
    403: "The service does not allow this, or the API key may only read, or other galleries",
    404: "There is no such image, or no such gallery",
    408: "The body came in too slowly",
    409: "The feature, or the reference, is of another encoder",
    413: "The request is larger than max_body_bytes",
    415: "The content type is neither JSON nor a form, or the body is compressed",
    422: "A field is wrong or beyond a limit, or the image is broken",
    503: "The service is too busy, or its database does not answer; "
    "Retry-After says when to come back",
    507: "The disk of the gallery is full",
}


class ProblemError(HTTPException):
    """An error of a request, with the members of its problem document."""

    def __init__(
        self, status: int, detail: str, *, headers: dict[str, str] | None = None, **members: Any
    ) -> None:
        super().__init__(status, detail, headers)
        self.problem = Problem(
            title=HTTPStatus(status).phrase, status=status, detail=detail, **members
        )


def beyond(
    limit: str, what: str, *, got: object, most: object, do: str, field: str = ""
) -> ProblemError:
    """Return 422 of a request beyond a limit; `limit` is the setting's name, `do` the remedy."""
    detail = f"{what}: got {got}, the limit is {most} ({limit}); {do}"
    errors = [FieldError(field=field, message=f"got {got}, at most {most}")] if field else None
    return ProblemError(422, detail, limit=limit, errors=errors)


def busy(detail: str) -> ProblemError:
    """Return 503, to be tried again soon."""
    return ProblemError(503, detail, headers={"Retry-After": str(RETRY_AFTER_S)})


def too_large(max_bytes: int) -> ProblemError:
    """Return 413, of a request or of a line of an import."""
    detail = f"the request is larger than {max_bytes} bytes (max_body_bytes); send a smaller image"
    return ProblemError(413, detail, limit="max_body_bytes", headers={"Connection": "close"})


def invalid(details: Sequence[Any]) -> ProblemError:
    """Return 422 of a list of errors as pydantic makes it."""
    errors = [
        FieldError(
            field=".".join(str(part) for part in detail["loc"] if part not in _FORMS)[:_LONG],
            message=detail["msg"].removeprefix("Value error, "),
        )
        for detail in details[:MAX_ERRORS]
    ]
    text = "; ".join(
        f"{wrong.field}: {wrong.message}" if wrong.field else wrong.message for wrong in errors
    )
    return ProblemError(422, text, errors=errors)


def wrong_field(field: str, message: str) -> ProblemError:
    """Return 422 of one field; an empty `field` is the whole request."""
    return invalid([{"loc": (field,), "msg": message}])


def nearest(name: str, known: Iterable[str]) -> str:
    """Return which known name was meant, to end a message with; empty where none is alike."""
    near = difflib.get_close_matches(name[:_LONG], list(known), n=1)  # a long name would take long
    return f"; did you mean {near[0]}?" if near else ""


def of(error: Exception) -> ProblemError | None:
    """Return the problem that an error is to a client; None where the service is at fault."""
    match error:
        case ProblemError():
            return error
        case RequestError():
            return of_request(error)
        case BrokenImage():
            limits = {"too_large": "max_pixels", "too_small": "min_side", "not_an_image": "formats"}
            limit = limits.get(error.reason)
            # Here the settings are the service's own, not those of `data`.
            detail = f"image: {_plain(error)}".replace("(data.", "(")
            return ProblemError(422, detail, reason=error.reason, limit=limit)
        case FetchRefused() | FetchFailed():
            limit = "max_body_bytes" if error.reason == "too_large" else None
            return ProblemError(
                422, f"image_url: {_plain(error)}", reason=error.reason, limit=limit
            )
        case GalleryError():
            return _of_gallery(error)
        case OtherEncoder():
            return ProblemError(409, f"{_plain(error)}: begin anew")
        case DataError():
            return ProblemError(422, _plain(error))
        case RequestValidationError():  # whose paths begin with "query", "path", "header" or "body"
            return invalid([{**detail, "loc": detail["loc"][1:]} for detail in error.errors()])
        case ValidationError():
            return invalid(error.errors())
        case StarletteHTTPException():
            return ProblemError(
                error.status_code, str(error.detail), headers=dict(error.headers or {})
            )
        case _:
            return None


def of_request(error: RequestError) -> ProblemError:
    """Return the problem of a request that the replica cannot answer."""
    detail = str(error)
    match error:
        case Busy() | NotLoaded():
            return busy(detail)
        case NoSuchImage():
            return ProblemError(404, detail)
        case NoSuchGallery():
            return ProblemError(404, detail, reason=UNKNOWN_GALLERY)
        case UnreadablePicture():
            return ProblemError(404, detail, reason=error.reason)
        case NoSuchVersion():
            return wrong_field("min_version", detail)
        case KeyMissing():
            return ProblemError(401, detail, headers={"WWW-Authenticate": error.challenge})
        case KeyTooWeak() | KeyElsewhere():
            reason = OTHER_GALLERY if isinstance(error, KeyElsewhere) else None
            headers = {"WWW-Authenticate": error.challenge}
            return ProblemError(403, detail, reason=reason, headers=headers)
        case UnknownHost():
            return ProblemError(421, detail)
        case _:
            raise AssertionError(f"{type(error).__name__} has no problem document")


def _of_gallery(error: GalleryError) -> ProblemError:
    reason = error.reason
    match reason:
        case "engine":
            return busy(
                "the gallery's search engine does not answer, so nothing can be searched; changes "
                "of the gallery are still taken; try again"
            )
        case "filling":
            return busy(f"{_plain(error)}; try again")
        case "unreachable":
            return busy(
                "the gallery's database, or its folder of pictures, does not answer: "
                "whether a change was made is unknown; send it again"
            )
        case "locked":
            return busy(
                "the gallery's database is busy with another writer: nothing was changed; "
                "send it again"
            )
        case "full":
            return ProblemError(
                507,
                "the disk of the gallery is full: nothing was changed; make room and send it again",
            )
        case "read_only":
            return ProblemError(
                503,
                "the gallery's database or pictures are read-only: nothing was changed; "
                "their owner must fix that",
            )
        case "replaced":
            return busy(
                "the gallery's database is not the file that the service opened: "
                "it was removed, replaced or damaged, and no change is acknowledged until its "
                "owner has fixed that; send it again then"
            )
        case _:
            return ProblemError(
                503,
                f"the gallery's database cannot be used ({reason}); the service's log says more",
            )


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what OpenAPI says of these errors."""
    return {
        status: {"model": Problem, "content": {MEDIA_TYPE: {}}, "description": DESCRIPTIONS[status]}
        for status in statuses
    }


def logged(error: Exception, what: str) -> ProblemError:
    """Return the problem that an error is to a client; log it after `what` if it is our own."""
    found = of(error)
    if found is None or (found.status_code >= 500 and isinstance(error, RaycdError)):
        _log.error("%s failed: %s", what, format_error(error))
    return found or ProblemError(500, "the service failed on this request; its log says why")


def response(problem: ProblemError) -> JSONResponse:
    """Return the problem document."""
    body = problem.problem.model_dump(exclude_none=True)
    return JSONResponse(body, problem.status_code, problem.headers, MEDIA_TYPE)


def add_handlers(app: FastAPI) -> None:
    """Make `app` answer each kind of mistake of a client with a problem document."""
    kinds = (ProblemError, RequestError, DataError, RequestValidationError, StarletteHTTPException)
    for kind in kinds:
        app.add_exception_handler(kind, _handle)


async def _handle(request: Request, error: Exception) -> JSONResponse:
    found = of(error)
    assert found is not None, "a kind that it knows"
    if found.status_code == 405:  # the router names the methods of the first of several routes
        found.headers = {"Allow": ", ".join(_allowed(request))}
    return response(found)


def _allowed(request: Request) -> list[str]:
    """Return the methods that any route at the path takes; files (a mount) are only read."""
    routes = [route for route in request.app.routes if not isinstance(route, Mount)]
    taken = [
        method
        for method in ("DELETE", "GET", "PATCH", "POST", "PUT")
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes
        )
    ] or ["GET"]
    return sorted([*taken, "HEAD"] if "GET" in taken else taken)


def _plain(error: Exception) -> str:
    return " ".join(str(error).split())
