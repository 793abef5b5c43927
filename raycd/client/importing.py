"""Imports: lines of JSON go to the service and their results come back, request after request."""

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
from raycd.client.wire import now
from raycd.errors import DataError

Importable = ImportLine | Mapping[str, Any] | bytes | str
PATH = "gallery:import"  # in the gallery's
LINES = "application/x-ndjson"
# The answer comes while lines are still sent, and httpx does not read while it sends: requests are
# so small that the answer fits the buffers of the connection.
PER_REQUEST = 256
REQUEST_BYTES = 4_000_000


@dataclass(frozen=True)
class ParsedItem:
    """An item as a line to send, or what is wrong with it."""

    number: int
    """Number of the item in the whole input, from 1."""
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
    """Yield the result of each item, see Client.import_images. Raises ServiceError."""
    lines = (_read(number, item, root) for number, item in enumerate(items, 1) if not _blank(item))
    most = max(1, min(per_request, limits.import_lines))
    for group in groups.split(lines, most=most, room=min(REQUEST_BYTES, limits.body_bytes)):
        refused = [line.refusal for line in group if line.refusal is not None]
        accepted = [line for line in group if line.refusal is None]
        with closing(_settle_all(service, accepted)) as settled:
            yield from heapq.merge(refused, settled, key=lambda item: item.line)


def _blank(item: object) -> bool:
    return isinstance(item, bytes | str) and not item.strip()


def _read(number: int, item: Importable, root: str | PathLike[str]) -> ParsedItem:
    image_id = None
    try:
        fields = json.loads(item) if isinstance(item, bytes | str) else item
        if isinstance(fields, Mapping):
            image_id = fields.get("image_id")
            fields = gallery.as_line(fields, root)
        if not isinstance(fields, ImportLine):
            got = type(fields).__name__
            what = "the image is impossible"
            raise DataError(what, got=got, expected="an object of its fields")
        body = fields.model_dump_json(exclude_unset=True).encode() + b"\n"
        return ParsedItem(number, fields.image_id, body)
    except DataError as error:
        detail = " ".join(str(error).split())
    except (ValueError, RecursionError) as error:
        detail = f"it is not JSON: {error}"
    known = _utf8(image_id) if isinstance(image_id, str) else None
    return ParsedItem(number, refusal=_refusal(number, known, _problem(422, _utf8(detail))))


def _utf8(text: str) -> str:
    """Return the text without lone surrogates, which JSON can have and UTF-8 cannot."""
    return text.encode(errors="replace").decode()


def _refusal(number: int, image_id: str | None, problem: Problem) -> ImportItem:
    return ImportItem(line=number, image_id=image_id, status=problem.status, problem=problem)


def _problem(status: int, detail: str) -> Problem:
    return Problem(title=HTTPStatus(status).phrase, status=status, detail=detail)


def _settle_all(service: Transport, lines: list[ParsedItem]) -> Generator[ImportItem]:
    """Yield the result of each line.

    Two lines of one image go in two requests, so that no retry undoes the later one.
    """
    together: dict[str | None, ParsedItem] = {}
    for line in lines:
        if line.image_id in together:
            yield from _settle(service, list(together.values()))
            together = {}
        together[line.image_id] = line
    yield from _settle(service, list(together.values()))


def _settle(service: Transport, lines: list[ParsedItem]) -> Generator[ImportItem]:
    """Yield the result of each line; those that are sent again come last.

    These are the lines that found the service busy, and those that a broken answer does not
    contain. A request that settles a line resets the count of tries: through a proxy that ends
    every connection after a minute, an import still completes.
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
        if lines and not now(service.again(attempts)):
            yield from busy.values()
            if len(busy) < len(lines):
                raise errors.cut_off(failure, service.url, tries=attempts.made)
            return


def _answer(
    service: Transport, lines: list[ParsedItem], attempts: Attempts
) -> Generator[ImportItem]:
    """Send one request; yield the results of its lines.

    Raises:
        ServiceError: The service refuses it, or its answer cannot be read.
        httpx.RequestError: The answer breaks off.
    """
    content, headers = b"".join(line.body for line in lines), {"Content-Type": LINES}
    path = f"{service.root}/{PATH}"
    try:
        response = now(
            service.send(
                "POST", path, attempts=attempts, stream=True, content=content, headers=headers
            )
        )
    except ServiceError as error:
        if error.status != 413 or len(lines) > 1:
            raise
        [line] = lines
        problem = error.problem or _problem(413, error.what)
        yield _refusal(line.number, line.image_id, problem)
        return
    with closing(response):
        if errors.media_type(response) != LINES:
            response.read()
            raise errors.unreadable(response, service.url)
        open_lines = dict(enumerate(lines, 1))
        for text in _whole_lines(response.iter_bytes()):
            item = _item(text)
            if item is not None and item.line == len(lines) + 1 and item.status in retry.BUSY:
                continue  # the service's time limit was reached while it waited for more lines
            sent = None if item is None else open_lines.pop(item.line, None)
            if item is None or sent is None:
                got = "a line of it that belongs to none that was sent"
                raise errors.unreadable(response, service.url, got=got)
            yield item.model_copy(update={"line": sent.number, "image_id": sent.image_id})


def _whole_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield lines that end with a line feed; a last one without it was cut off."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole


def _item(text: bytes) -> ImportItem | None:
    try:
        return ImportItem.model_validate_json(text)
    except ValidationError:
        return None
