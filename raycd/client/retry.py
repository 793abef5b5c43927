"""Retries: when a request is sent again, and after which time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx

from raycd.client import errors

BUSY = (429, 503)  # the service may answer the same request later
LOST = (500, 502, 504)  # of a proxy before the service, when the replica at work has died

_FIRST_S, _DOUBLINGS = 0.25, 5  # then a wait is at its longest, 8 s


@dataclass(frozen=True)
class Retries:
    """The retries after a busy service, a dead replica or a broken connection, and nothing else."""

    count: int = 4
    """How often a request is sent again."""
    deadline: float = 120.0
    """Seconds of a request with all its tries: a wait that would end later does not begin. An
    answer that comes in by and by is read to its end.
    """
    sleep: Callable[[float], object] | None = field(default=None, repr=False)
    """What waits instead of time.sleep or asyncio.sleep; AsyncClient awaits what it returns."""
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)


class Attempts:
    """The tries of one request."""

    def __init__(self, retries: Retries) -> None:
        self.made = 1
        self._retries = retries
        self._end = retries.clock() + retries.deadline

    @property
    def remaining(self) -> float:
        """Seconds until the deadline, at least 1 ms: a timeout cannot be 0."""
        return max(0.001, self._end - self._retries.clock())

    def next_wait(self, after: float | None = None) -> float | None:
        """Return the seconds to wait before the next try, or None to give up.

        The wait doubles from try to try. A part of it is random, so that clients that were refused
        together do not come back together.

        Args:
            after: Seconds that the service asks to wait; the random part comes on top.
        """
        backoff = _FIRST_S * 2 ** min(self.made - 1, _DOUBLINGS) * random.uniform(0.5, 1)
        wait: float = (after or 0.0) + backoff
        if self.made > self._retries.count or wait >= self.remaining:
            return None
        self.made += 1
        return wait


def may_succeed(response: httpx.Response) -> bool:
    """Return whether the same request may succeed soon. All requests are idempotent."""
    ours = errors.media_type(response) == errors.PROBLEM
    return response.status_code in BUSY or (response.status_code in LOST and not ours)


def is_passing(failure: httpx.RequestError) -> bool:
    """Return whether the cause of a missing answer may pass soon.

    A slow service (ReadTimeout) would only become slower by more requests.
    """
    passing = httpx.NetworkError | httpx.ConnectTimeout | httpx.RemoteProtocolError
    return isinstance(failure, passing) and not errors.is_of_tls(failure)
