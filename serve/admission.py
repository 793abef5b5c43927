"""How much a replica takes on at a time: searches, writes, bodies that come in. More is refused,
not kept waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from serve import problems

COMMAS = 10_000  # in what JSON says, beside those between its values
GRACE_S = 1.0  # that a body may take however many others come in


class Admission:
    """Searches at work and waiting in this replica, at most `most`. Used from one event loop."""

    def __init__(self, most: int) -> None:
        self.most, self.busy = most, 0

    def check(self) -> None:
        """Raises ProblemError (503, Retry-After) where the replica is full."""
        if self.busy >= self.most:
            raise problems.busy(
                f"the service is busy with {self.busy} searches (max_queue); try again in a moment"
            )

    @contextmanager
    def slot(self) -> Iterator[None]:
        """A place for one search. Raises as `check` does."""
        self.check()
        self.busy += 1
        try:
            yield
        finally:
            self.busy -= 1


class Reading:
    """Bodies that come in, at most `most`, each within `seconds`. Used from one event loop.

    A body takes no search's place before it is whole, and where all places of bodies are taken, the
    one that has come in for the longest time loses its own: slow senders shut out nobody but one
    another.
    """

    def __init__(self, most: int, seconds: float) -> None:
        self.most, self.seconds = most, seconds
        self._limits: dict[asyncio.Timeout, float] = {}  # since when, the longest first

    async def whole(self, request: Request, values: int) -> None:
        """Read the body, which the request keeps.

        Raises ProblemError: 408 too slow, 503 no place for it, 413 JSON of many more than so many
        values.
        """
        now = asyncio.get_running_loop().time()
        if len(self._limits) >= self.most:
            self._cut_off(now)
        limit = asyncio.timeout(self.seconds)
        self._limits[limit] = now
        try:
            async with limit:
                await request.body()
        except TimeoutError:
            raise problems.ProblemError(
                408,
                f"the body did not come in fast enough: it may take {self.seconds:g} s (body_timeout_s), less where "
                "many come in; send it again",
                limit="body_timeout_s",
                headers={"Connection": "close"},
            ) from None
        finally:
            self._limits.pop(limit, None)
        if "json" in request.headers.get("content-type", ""):
            check_values(await request.body(), values)

    def _cut_off(self, now: float) -> None:
        """Make place for another body."""
        slowest, since = next(iter(self._limits.items()))
        if now - since < GRACE_S:
            raise problems.busy(
                f"{len(self._limits)} requests are being read (max_queue); try again in a moment"
            )
        del self._limits[slowest]
        slowest.reschedule(now)


def check_values(body: bytes, most: int) -> None:
    """Raises ProblemError (413) where JSON has many more values than `most`: each takes time to
    read and to check.
    """
    count, enough = body.count(b","), most + COMMAS
    if count > enough:
        raise problems.ProblemError(
            413, f"the JSON has too many values: got {count} commas, at most {enough}"
        )


class Door:
    """The requests under way in this replica. Once it is closed, new ones are refused. Used from
    one event loop.
    """

    def __init__(self) -> None:
        self.under_way, self.closed = 0, False

    async def close(self, seconds: float) -> bool:
        """Refuse all that comes from now on, and wait until nothing is under way. Returns whether
        anything was.
        """
        self.closed, some = True, self.under_way > 0
        end = asyncio.get_running_loop().time() + seconds
        while self.under_way and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.02)
        return some


class Guarded:
    """ASGI middleware: 503 where the door is closed; the others are counted."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self.app, self.door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self.door.closed:
            refused = problems.busy("the service is ending; ask another one, or again in a moment")
            await problems.response(refused)(scope, receive, send)
            return
        self.door.under_way += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.door.under_way -= 1
