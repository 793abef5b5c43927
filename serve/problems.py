"""Every error as an RFC 9457 problem document; never a stack trace. Also the guard on the size of a request."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raycd.data.images import BrokenImage
from raycd.errors import DataError
from serve.schemas import FieldError, Problem

MEDIA_TYPE = "application/problem+json"
_PLACES = ("body", "query", "path", "header")


def problem(status: int, detail: str, *, headers: dict[str, str] | None = None, **members: Any) -> JSONResponse:
    """The response; `members` are `reason` and `errors`."""
    body = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail, **members)
    return JSONResponse(body.model_dump(exclude_none=True), status, headers, MEDIA_TYPE)


def add_handlers(app: FastAPI) -> None:
    """Make `app` answer each kind of error with a problem document."""
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(BrokenImage, _broken_image)
    app.add_exception_handler(DataError, _bad_data)
    app.add_exception_handler(StarletteHTTPException, _http)
    app.add_exception_handler(Exception, _bug)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    errors = [
        FieldError(field=".".join(str(part) for part in detail["loc"] if part not in _PLACES), message=detail["msg"])
        for detail in error.errors()
    ]
    return problem(422, "; ".join(f"{wrong.field}: {wrong.message}" for wrong in errors), errors=errors)


async def _broken_image(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, BrokenImage)
    return problem(422, f"image: {error}", reason=error.reason)


async def _bad_data(request: Request, error: Exception) -> JSONResponse:
    return problem(422, str(error))


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, StarletteHTTPException)
    return problem(error.status_code, str(error.detail), headers=dict(error.headers or {}))


async def _bug(request: Request, error: Exception) -> JSONResponse:
    return problem(500, "the service failed on this request; its log says why")


class BodyLimit:
    """ASGI middleware: requests of more than `max_bytes` get 413, by their header where it is honest, else by count."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        detail = f"the request is larger than {self.max_bytes} bytes"
        declared = Headers(scope=scope).get("content-length", "0")
        if not declared.isdecimal() or int(declared) > self.max_bytes:
            await problem(413, detail)(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise HTTPException(413, detail)
            return message

        await self.app(scope, counted, send)
