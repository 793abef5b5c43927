"""The bodies of requests as they come in: how many at a time, how fast, and how much JSON."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from fastapi import Request

from serve.api import problems
from serve.api.problems import ProblemError

COMMAS = 10_000  # in what JSON says, beside those between its values
GRACE_S = 1.0  # seconds that a body may take however many others come in


class Intake:
    """Bodies that come in, at most `most`, each within `seconds`. Used from one event loop.

    A body takes no search's slot before it is whole. Where `most` of them come in, the one that has
    taken longest is given up for the next: slow senders shut out nobody but one another.
    """

    def __init__(self, most: int, seconds: float) -> None:
        self.most, self.seconds = most, seconds
        self._limits: dict[asyncio.Timeout, float] = {}  # since when, the longest first

    async def read(self, request: Request, values: int) -> None:
        """Read the whole body, which the request keeps.

        Raises:
            ProblemError: 408 it is too slow, 503 too many come in, 413 it is JSON of many more than
                so many values.
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
            raise ProblemError(
                408,
                f"the body did not come in fast enough: it may take {self.seconds:g} s "
                "(body_timeout_s), less where many come in; send it again",
                limit="body_timeout_s",
                headers={"Connection": "close"},
            ) from None
        finally:
            self._limits.pop(limit, None)
        # Of the type alone: a form's boundary may be any letters
        if "json" in request.headers.get("content-type", "").partition(";")[0].lower():
            check_values(await request.body(), values)

    def _cut_off(self, now: float) -> None:
        slowest, since = next(iter(self._limits.items()))
        if now - since < GRACE_S:
            raise problems.busy(
                f"{len(self._limits)} requests are being read (max_queue); try again in a moment"
            )
        del self._limits[slowest]
        with suppress(RuntimeError):  # its time has just ended by itself
            slowest.reschedule(now)


def check_values(body: bytes, most: int) -> None:
    """Raise ProblemError (413) where JSON has many more than `most` values.

    Each takes time to read and to check.
    """
    count, enough = body.count(b","), most + COMMAS
    if count > enough:
        raise ProblemError(
            413, f"the JSON has too many values: got {count} commas, at most {enough}"
        )
