"""What clients do wrong as RFC 9457 problem documents. Also the guard on request sizes."""

import difflib
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import JSONResponse
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raycd.api import FieldError, Problem
from raycd.data.images import BrokenImage
from raycd.errors import DataError, GalleryError
from serve.fetch import FetchFailed, FetchRefused

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1
TOLD = 20  # wrong fields of one request, at most
_LONG = 100  # characters of what a client has named
_PLACES = ("body", "query", "path", "header")

DESCRIPTIONS = {
    400: "The address is not UTF-8, or the body is not what its content type says",
    401: "The API key is missing, unknown or revoked",
    403: "The service does not allow this, or the API key may only read",
    404: "There is no such image",
    408: "The body came in too slowly",
    409: "The feature is of another encoder",
    413: "The request is larger than max_body_bytes",
    415: "The content type is neither JSON nor a form, or the body is compressed",
    422: "A field is wrong or beyond a limit, or the image is broken",
    503: "The service is too busy, or its database does not answer; Retry-After says when to come back",
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
    """A request beyond one of the service's limits; `limit` is the setting's name, `do` the remedy."""
    detail = f"{what}: got {got}, the limit is {most} ({limit}); {do}"
    errors = [FieldError(field=field, message=f"got {got}, at most {most}")] if field else None
    return ProblemError(422, detail, limit=limit, errors=errors)


def busy(detail: str) -> ProblemError:
    """503: come back soon."""
    return ProblemError(503, detail, headers={"Retry-After": str(RETRY_AFTER_S)})


def too_large(max_bytes: int) -> ProblemError:
    """413: of a request, or of a line of an import."""
    detail = f"the request is larger than {max_bytes} bytes (max_body_bytes); send a smaller image"
    return ProblemError(413, detail, limit="max_body_bytes", headers={"Connection": "close"})


def invalid(details: Sequence[Any]) -> ProblemError:
    """422 of pydantic's list of errors."""
    errors = [
        FieldError(
            field=".".join(str(part) for part in detail["loc"] if part not in _PLACES)[:_LONG],
            message=detail["msg"].removeprefix("Value error, "),
        )
        for detail in details[:TOLD]
    ]
    text = "; ".join(
        f"{wrong.field}: {wrong.message}" if wrong.field else wrong.message for wrong in errors
    )
    return ProblemError(422, text, errors=errors)


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that was meant, as the end of a message; empty where none is alike."""
    near = difflib.get_close_matches(name[:_LONG], list(known), n=1)  # a long name would take long
    return f"; did you mean {near[0]}?" if near else ""


def of(error: Exception) -> ProblemError | None:
    """The problem that an error is to whoever asked; None where it is the service's own mistake."""
    match error:
        case ProblemError():
            return error
        case BrokenImage():
            limits = {"too_large": "max_pixels", "too_small": "min_side", "not_an_image": "formats"}
            limit = limits.get(error.reason)
            detail = f"image: {_plain(error)}".replace(
                "(data.", "("
            )  # here they are the service's own settings
            return ProblemError(422, detail, reason=error.reason, limit=limit)
        case FetchRefused() | FetchFailed():
            limit = "max_body_bytes" if error.reason == "too_large" else None
            return ProblemError(
                422, f"image_url: {_plain(error)}", reason=error.reason, limit=limit
            )
        case GalleryError():
            return _of_gallery_db(error.reason)
        case DataError():
            return ProblemError(422, _plain(error))
        case RequestValidationError() | ValidationError():
            return invalid(error.errors())
        case StarletteHTTPException():
            return ProblemError(
                error.status_code, str(error.detail), headers=dict(error.headers or {})
            )
        case _:
            return None


def _of_gallery_db(reason: GalleryError.Reason) -> ProblemError:
    match reason:
        case "unreachable":
            return busy(
                "the gallery's database, or the place of its pictures, does not answer: whether a change was made is "
                "unknown; send it again"
            )
        case "locked":
            return busy(
                "the gallery's database is busy with another writer: nothing was changed; send it again"
            )
        case "full":
            return ProblemError(
                507,
                "the disk of the gallery is full: nothing was changed; make room and send it again",
            )
        case "read_only":
            return ProblemError(
                503,
                "the gallery's database or pictures are read-only: nothing was changed; their owner must mend that",
            )
        case "replaced":
            return busy(
                "the gallery's database is not the file that the service opened: it was removed, replaced or damaged, "
                "and no change is acknowledged until its owner has mended that; send it again then"
            )
        case _:
            return ProblemError(
                503,
                f"the gallery's database cannot be used ({reason}); the service's log says more",
            )


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of these errors."""
    return {
        status: {"model": Problem, "content": {MEDIA_TYPE: {}}, "description": DESCRIPTIONS[status]}
        for status in statuses
    }


def response(problem: ProblemError) -> JSONResponse:
    """The problem document."""
    body = problem.problem.model_dump(exclude_none=True)
    return JSONResponse(body, problem.status_code, problem.headers, MEDIA_TYPE)


def add_handlers(app: FastAPI) -> None:
    """Make `app` answer each kind of mistake of a client with a problem document."""
    for kind in (ProblemError, DataError, RequestValidationError, StarletteHTTPException):
        app.add_exception_handler(kind, _handle)


async def _handle(request: Request, error: Exception) -> JSONResponse:
    found = of(error)
    assert found is not None, "a kind that it knows"
    if found.status_code == 405:  # the router tells the methods of the first of several routes
        found.headers = {"Allow": ", ".join(_allowed(request))}
    return response(found)


def _allowed(request: Request) -> list[str]:
    """The methods that any route at the request's path takes; files (a mount) are only read."""
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
    """A message of several lines in one."""
    return " ".join(str(error).split())


def _path(scope: Scope) -> str:
    """The path within the application."""
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


class BodyLimit:
    """ASGI middleware: requests of more than `max_bytes` get 413, by their header where it is
    honest, else by count.

    Paths in `streamed` may send any number of bytes: their routes count for themselves.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, streamed: Sequence[str] = ()) -> None:
        self.app, self.max_bytes, self.streamed = app, max_bytes, streamed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _path(scope) in self.streamed:
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "0")
        if not declared.isdecimal() or int(declared) > self.max_bytes:
            await response(too_large(self.max_bytes))(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise too_large(self.max_bytes)
            return message

        await self.app(scope, counted, send)
