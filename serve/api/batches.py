"""What searches and embeddings have in common: their batches, images by URL, times and answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from fastapi import Request, Response
from pydantic import BaseModel
from starlette.background import BackgroundTasks

from raycd.api import BatchRequest, EmbedBatchRequest
from raycd.search.query import Prepared
from serve.api import bodies, problems
from serve.engine.queries import QueryImage
from serve.load.admission import all_within
from serve.replica import Replica
from serve.security.fetch import fetch

T = TypeVar("T")
_Batch = type[BatchRequest] | type[EmbedBatchRequest]


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """Return what OpenAPI says of a body of JSON."""
    return {
        "requestBody": {
            "required": True,
            "content": {bodies.JSON: {"schema": bodies.schema(model)}},
        }
    }


def check_json(request: Request) -> None:
    """Raise ProblemError: any other content type may be sent blind by pages of other origins."""
    kind = bodies.content_type(request)
    if not bodies.is_json(kind):
        raise bodies.unsupported(kind, bodies.JSON)


async def read(model: _Batch, request: Request, most: int) -> list[Any]:
    """Return the entries of a batch, of which nothing is checked yet. Raises ProblemError."""
    body = bodies.validated(model, await bodies.parsed(request))
    [(field, entries)] = body
    if len(entries) > most:
        raise problems.beyond(
            "max_batch",
            f"too many {field}",
            got=len(entries),
            most=most,
            field=field,
            do="send fewer",
        )
    found: list[Any] = entries
    return found


async def by_turns(
    entries: Sequence[Any], replica: Replica, answered: Callable[[Any], Awaitable[T]]
) -> list[T]:
    """Answer the entries of a batch, as many together as there are slots for their images.

    More would be refused, even by a replica that does nothing else. All of them together have the
    time of one request.
    """
    with all_within(replica.args.timeout_s):
        return await _by_turns(entries, replica.searches.most, answered)


async def _by_turns(
    entries: Sequence[Any], most: int, answered: Callable[[Any], Awaitable[T]]
) -> list[T]:
    found: list[T] = []
    turn: list[Any] = []
    taken = 0
    for entry in entries:
        images = entry.get("images") if isinstance(entry, Mapping) else None
        slots = min(most, max(1, len(images) if isinstance(images, list) else 1))
        if turn and taken + slots > most:
            found += await asyncio.gather(*map(answered, turn))
            turn, taken = [], 0
        turn.append(entry)
        taken += slots
    return found + await asyncio.gather(*map(answered, turn))


async def fetched(replica: Replica, sent: list[QueryImage]) -> list[QueryImage]:
    """Return a query's images, with the files of those that are given by URL. Raises as `fetch`."""
    args = replica.args
    return [
        one
        if one.url is None
        else one._replace(
            file=await fetch(one.url, max_bytes=args.max_body_bytes, timeout_s=args.fetch_timeout_s)
        )
        for one in sent
    ]


def cut_off(query: Prepared) -> list[str]:
    """Return a warning for each text that the model did not read to its end."""
    return [
        f"the end of the text was cut off, the model reads less: {text[:40]}..."
        for text in query.truncated
    ]


def answer(
    body: BaseModel,
    headers: dict[str, str] | None = None,
    background: BackgroundTasks | None = None,
) -> Response:
    """Return the response of an answer, which was made by us and needs no check.

    `background` is done once it has gone out.
    """
    return Response(body.model_dump_json(), 200, headers, bodies.JSON, background)


def since(began: float) -> float:
    """Return the milliseconds since a time of `time.perf_counter`."""
    return 1000 * (time.perf_counter() - began)


def rounded(timings: Mapping[str, float]) -> dict[str, float]:
    """Return milliseconds as answers tell them."""
    return {step: round(milliseconds, 3) for step, milliseconds in timings.items()}
