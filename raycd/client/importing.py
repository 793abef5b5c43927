"""Many images into the gallery: lines of JSON out, what became of each back, request after request."""

from __future__ import annotations

import heapq
import json
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from http import HTTPStatus
from os import PathLike
from typing import Any

import httpx
from pydantic import ValidationError

from raycd.api import ImportItem, ImportLine, Limits, Problem
from raycd.client import errors, gallery, groups, retry
from raycd.client.errors import ServiceError
from raycd.client.retry import Attempts
from raycd.client.transport import Transport
from raycd.errors import DataError

Importable = ImportLine | Mapping[str, Any] | bytes | str
PATH = "/v1/gallery:import"
LINES = "application/x-ndjson"
# The answer comes while lines still go out, and who sends does not read: requests stay so small
# that what comes meanwhile fits the buffers of the connection.
PER_REQUEST = 256
REQUEST_BYTES = 4_000_000


@dataclass(frozen=True)
class Line:
    """An item that was read: a line to send, or what is wrong with it."""

    number: int
    """Of the item in the whole input, from 1."""
    image_id: str | None = None
    body: bytes = b""
    refusal: ImportItem | None = None

    @property
    def size(self) -> int:
        """Bytes in a request."""
        return len(self.body)


def import_images(
    service: Transport,
    items: Iterable[Importable],
    limits: Limits,
    *,
    root: str | PathLike[str],
    per_request: int,
) -> Iterator[ImportItem]:
    """What became of each item; as Client.import_images says. Raises ServiceError."""
    lines = (_read(number, item, root) for number, item in enumerate(items, 1) if not _blank(item))
    most, room = (
        max(1, min(per_request, limits.import_lines)),
        min(REQUEST_BYTES, limits.body_bytes),
    )
    for group in groups.split(lines, most=most, room=room):
        refused = [line.refusal for line in group if line.refusal is not None]
        with closing(
            _settle_all(service, [line for line in group if line.refusal is None])
        ) as settled:
            yield from heapq.merge(refused, settled, key=lambda item: item.line)


def _blank(item: object) -> bool:
    return isinstance(item, bytes | str) and not item.strip()


def _read(number: int, item: Importable, root: str | PathLike[str]) -> Line:
    image_id = None
    try:
        fields = json.loads(item) if isinstance(item, bytes | str) else item
        if isinstance(fields, Mapping):
            image_id = fields.get("image_id")
            fields = gallery.as_line(fields, root)
        if not isinstance(fields, ImportLine):
            raise DataError(
                "the image is impossible",
                got=type(fields).__name__,
                expected="an object of its fields",
            )
        return Line(
            number, fields.image_id, fields.model_dump_json(exclude_unset=True).encode() + b"\n"
        )
    except DataError as error:
        detail = " ".join(str(error).split())
    except (ValueError, RecursionError) as error:
        detail = f"it is not JSON: {error}"
    known = _utf8(image_id) if isinstance(image_id, str) else None
    return Line(number, refusal=_refusal(number, known, _problem(422, _utf8(detail))))


def _utf8(text: str) -> str:
    """The text without lone surrogates, which JSON can spell and no file can hold."""
    return text.encode(errors="replace").decode()


def _refusal(number: int, image_id: str | None, problem: Problem) -> ImportItem:
    return ImportItem(line=number, image_id=image_id, status=problem.status, problem=problem)


def _problem(status: int, detail: str) -> Problem:
    return Problem(title=HTTPStatus(status).phrase, status=status, detail=detail)


def _settle_all(service: Transport, lines: list[Line]) -> Generator[ImportItem]:
    """What became of each line. An image that stands twice goes in two requests: no retry undoes
    the later one.
    """
    together: dict[str | None, Line] = {}
    for line in lines:
        if line.image_id in together:
            yield from _settle(service, list(together.values()))
            together = {}
        together[line.image_id] = line
    yield from _settle(service, list(together.values()))


def _settle(service: Transport, lines: list[Line]) -> Generator[ImportItem]:
    """What became of each line, after as many requests as it takes: those that are sent again come
    last.

    These are the lines that found the service busy, and those that a broken answer says nothing of.
    A request that settles a line has been worth it, and the tries are counted anew: through a proxy
    that ends every connection after a minute, an import still gets to its end.
    """
    attempts = service.attempts()
    while lines:
        left = {line.number: line for line in lines}
        busy: dict[int, ImportItem] = {}
        failure: httpx.RequestError | None = None
        try:
            with closing(_answer(service, lines, attempts)) as answer:
                for item in answer:
                    if item.status in retry.BUSY:
                        busy[item.line] = item
                    else:
                        del left[item.line]
                        yield item
        except httpx.RequestError as error:
            if not retry.is_passing(error):
                raise errors.unreachable(error, service.url, tries=attempts.made) from error
            failure = error
        if len(left) < len(lines):
            attempts = service.attempts()
        lines = list(left.values())
        if lines and not attempts.again():
            yield from busy.values()
            if len(busy) < len(lines):
                raise errors.cut_off(failure, service.url, tries=attempts.made)
            return


def _answer(service: Transport, lines: list[Line], attempts: Attempts) -> Generator[ImportItem]:
    """What one request says of its lines. Raises ServiceError, and httpx.RequestError where the
    answer breaks off.
    """
    content, headers = b"".join(line.body for line in lines), {"Content-Type": LINES}
    try:
        response = service.send(
            "POST", PATH, attempts=attempts, stream=True, content=content, headers=headers
        )
    except ServiceError as error:
        if error.status != 413 or len(lines) > 1:
            raise
        yield _refusal(
            lines[0].number, lines[0].image_id, error.problem or _problem(413, error.what)
        )
        return
    with closing(response):
        if errors.media_type(response) != LINES:
            response.read()
            raise errors.unreadable(response, service.url)
        untold = dict(enumerate(lines, 1))
        for text in _whole_lines(response.iter_bytes()):
            item = _item(text)
            if item is not None and item.line == len(lines) + 1 and item.status in retry.BUSY:
                continue  # the service's time was over while it waited for more
            line = None if item is None else untold.pop(item.line, None)
            if item is None or line is None:
                raise errors.unreadable(
                    response, service.url, got="a line of it that tells of none that was sent"
                )
            yield item.model_copy(update={"line": line.number, "image_id": line.image_id})


def _whole_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Lines by their line feeds alone; a last one without was cut off and says nothing."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole


def _item(text: bytes) -> ImportItem | None:
    try:
        return ImportItem.model_validate_json(text)
    except ValidationError:
        return None
