"""POST /v1/gallery:import: many images, a line of JSON each, and a line of answer to each."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import AsyncIterator, Iterable
from typing import NamedTuple

from fastapi import APIRouter, Depends, Request
from fastapi.responses import StreamingResponse
from pydantic import ValidationError
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from raycd.api import ImportItem, ImportLine
from serve.api import bodies, image_body, problems
from serve.api.intake import check_values
from serve.api.problems import ProblemError
from serve.api.served import Asked, Served
from serve.api.wellformed import known_parameters
from serve.api.write import UNKNOWN, check_new_id, put_one, writable
from serve.args import ServeArgs
from serve.live.writer import Writer
from serve.load.admission import Admission
from serve.monitoring import tracing
from serve.replica import Replica

PATH = "/gallery:import"
LINES = "application/x-ndjson"
TOGETHER = 256  # lines that are at work at once

# Problem and FieldError are there, as other routes' answers.
_ANSWERS = {
    LINES: {
        "schema": ImportItem.model_json_schema(ref_template="#/components/schemas/{model}"),
    }
}

_OPENAPI = {
    "requestBody": {
        "required": True,
        "content": {LINES: {"schema": ImportLine.model_json_schema()}},
        "description": "A line of JSON an image.",
    }
}


def router(asked: Asked, prefix: str) -> APIRouter:
    """Return the route that imports into the gallery that is asked."""
    routes = APIRouter(prefix=prefix, tags=["gallery"], dependencies=[Depends(known_parameters)])

    @routes.post(
        PATH,
        response_class=StreamingResponse,
        responses={200: {"content": _ANSWERS}, **problems.responses(400, 403, 415, 422, 503)},
        openapi_extra=_OPENAPI,
    )
    async def import_images(request: Request, to: Served = asked) -> StreamingResponse:
        """Add or replace many images. Each succeeds or fails by itself, and is answered as soon as
        it is on the disk.
        """
        replica = to.replica
        writer = writable(replica)
        kind = bodies.content_type(request)
        if kind != LINES:
            raise bodies.unsupported(kind, LINES)
        return _Answers(replica.imports, _answers(replica, writer, request))

    return routes


class _Answers(StreamingResponse):
    """A response while the request still comes in.

    Starlette's own would read on in the request, waiting for a disconnection.
    """

    def __init__(self, imports: Admission, answers: AsyncIterator[str]) -> None:
        super().__init__(answers, media_type=LINES)
        self._imports = imports

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Refused before an answer has begun. A trace does not list thousands of lines.
        with self._imports.slot(), tracing.unsampled():
            await self.stream_response(send)


async def _answers(replica: Replica, writer: Writer, request: Request) -> AsyncIterator[str]:
    """Yield answers, of as many lines at once as one transaction takes well."""
    some: dict[str, _Line] = {}
    size = 0
    async for line in _parsed(request, replica.args):
        size += line.size
        # Of two lines with one id the later one must win.
        if len(some) >= TOGETHER or size > replica.args.max_body_bytes or line.key in some:
            yield await _together(replica, writer, some.values())
            some, size = {}, line.size
        some[line.key] = line
    yield await _together(replica, writer, some.values())


class _Line(NamedTuple):
    number: int  # from 1
    asked: ImportLine | ProblemError
    size: int = 0  # bytes

    @property
    def key(self) -> str:
        """What no two lines may share that are at work at once."""
        return (
            f"line {self.number}"
            if isinstance(self.asked, ProblemError)
            else f"id {self.asked.image_id}"
        )


async def _parsed(request: Request, args: ServeArgs) -> AsyncIterator[_Line]:
    """Yield lines as far as the limits go; the first one beyond is a problem, and the last."""
    number, end = 0, asyncio.get_running_loop().time() + args.timeout_s
    try:
        async for line in _lines(
            _until(end, args.body_timeout_s, request.stream()), args.max_body_bytes
        ):
            if asyncio.get_running_loop().time() > end:
                raise TimeoutError
            if number == args.max_import:
                do = "send the rest in another request"
                raise problems.beyond(
                    "max_import", "too many lines", got="more", most=args.max_import, do=do
                )
            number += 1
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                yield _Line(number, _validated(line, args), len(line))
    except ProblemError as problem:
        yield _Line(number + 1, problem)
    except TimeoutError:
        late = f"took longer than {args.timeout_s:g} s (timeout_s)"
        if asyncio.get_running_loop().time() < end:
            late = f"sent nothing for {args.body_timeout_s:g} s (body_timeout_s)"
        what = f"the import {late}; send the rest in another request"
        yield _Line(number + 1, problems.busy(what))
    except ClientDisconnect:
        return


async def _until(end: float, pause_s: float, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield chunks until a time of the event loop.

    Raises TimeoutError at that time, or where the next chunk takes longer than `pause_s`.
    """
    while True:
        try:
            async with asyncio.timeout_at(min(end, asyncio.get_running_loop().time() + pause_s)):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        yield chunk


def _validated(line: bytes, args: ServeArgs) -> ImportLine | ProblemError:
    try:
        check_values(line, args.max_attributes)
        return ImportLine.model_validate_json(line)
    except ValidationError as error:
        return bodies.refused(ImportLine, error)
    except ProblemError as problem:
        return problem


async def _lines(chunks: AsyncIterator[bytes], most: int) -> AsyncIterator[bytes]:
    """Yield the body's lines. Raises ProblemError where one is longer than `most` bytes."""
    parts: list[bytes] = []
    length = 0
    async for chunk in chunks:
        *whole, rest = chunk.split(b"\n")
        for line in whole:
            if length + len(line) > most:  # its end may come with the chunk that makes it too long
                raise problems.too_large(most)
            yield b"".join([*parts, line])
            parts, length = [], 0
        parts.append(rest)
        length += len(rest)
        if length > most:
            raise problems.too_large(most)
    if length:
        yield b"".join(parts)


async def _together(replica: Replica, writer: Writer, some: Iterable[_Line]) -> str:
    items = await asyncio.gather(*(_one(replica, writer, line) for line in some))
    return "".join(f"{item.model_dump_json(exclude_none=True)}\n" for item in items)


async def _one(replica: Replica, writer: Writer, line: _Line) -> ImportItem:
    number, asked, _ = line
    image_id = None if isinstance(asked, ProblemError) else asked.image_id
    try:
        if isinstance(asked, ProblemError):
            raise asked
        check_new_id(asked.image_id)
        async with replica.deadline(then=UNKNOWN):
            sent = image_body.check(asked, None, replica.args, replica.engine)
            done = await put_one(replica, writer, asked.image_id, sent)
    except Exception as error:
        problem = problems.logged(error, "a line of an import")
        return ImportItem(
            line=number, image_id=image_id, status=problem.status_code, problem=problem.problem
        )
    status = 200 if done.existed else 201
    return ImportItem.model_construct(
        line=number, image_id=image_id, status=status, version=done.version, problem=None
    )
