"""Any number of searches in JSON Lines, and their answers in the order of the lines.

A line is the body of a search (raycd.api.SearchRequest), where `image` may name a file. Its answer
is a BatchItem with the line's number. A wrong line gets a problem of its own, and the others go on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast

from raycd.api import BatchItem, Problem, SearchRequest
from raycd.client import groups, request
from raycd.client.client import Client
from raycd.client.errors import ServiceError
from raycd.client.request import Search
from raycd.errors import DataError

_ENVELOPE = 100  # bytes of a batch's body beside its searches, at most


@dataclass(frozen=True)
class ParsedSearch:
    """A line as a search, or what is wrong with it."""

    number: int
    search: SearchRequest | None = None
    refusal: BatchItem | None = None
    size: int = 0
    """Bytes of the search in a body."""


def answer(
    client: Client, lines: Iterable[bytes], *, user: str = ""
) -> Iterator[tuple[int, BatchItem]]:
    """Yield number and answer of each line that is not blank. Raises ServiceError."""
    read = (_read(number, line) for number, line in enumerate(lines, start=1) if line.strip())
    limits = client.info().limits
    for batch in groups.split(read, most=limits.batch, room=limits.body_bytes - _ENVELOPE):
        searches = [line.search for line in batch if line.search is not None]
        found = iter(_search(client, searches, user))
        for line in batch:
            yield line.number, line.refusal or next(found)


def _read(number: int, line: bytes) -> ParsedSearch:
    try:
        fields = json.loads(line)
        if not isinstance(fields, dict):
            raise DataError(f"got {type(fields).__name__}, expected a JSON object")
        search = request.as_json(SearchRequest, cast(Search, fields))
    except (ValueError, RecursionError) as error:
        return ParsedSearch(number, refusal=_refusal(f"line {number} is not JSON: {error}"))
    except DataError as error:
        return ParsedSearch(
            number, refusal=_refusal(f"line {number}: {' '.join(str(error).split())}")
        )
    return ParsedSearch(
        number, search, size=len(search.model_dump_json(exclude_unset=True).encode()) + 1
    )


def _refusal(detail: str) -> BatchItem:
    return BatchItem(status=400, problem=Problem(title="Bad Request", status=400, detail=detail))


def _search(client: Client, searches: list[SearchRequest], user: str) -> list[BatchItem]:
    try:
        return client.search_batch(searches, user=user).items
    except ServiceError as error:
        if error.status != 413 or len(searches) > 1:
            raise
        problem = error.problem or Problem(title="Content Too Large", status=413, detail=error.what)
        return [BatchItem(status=413, problem=problem)]  # one image above the service's limit
