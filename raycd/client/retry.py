"""When a request is sent again, and how long that waits."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime

import httpx

from raycd.client import errors

BUSY = (429, 503)  # the statuses after which the same request may succeed
LOST = (
    500,
    502,
    504,
)  # of what stands before the service, when the replica that was at work has ended

_FIRST_S, _LONGEST_S = 0.25, 8.0


@dataclass(frozen=True)
class Retries:
    """How patient a client is with a busy service, a lost replica and a broken connection; all else
    is tried once.
    """

    count: int = 4
    """Times that a request is sent again."""
    deadline: float = 120.0
    """Seconds for a request with all its tries: no wait begins that would end later."""
    sleep: Callable[[float], object] = field(default=time.sleep, repr=False)
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)


class Attempts:
    """The tries of one request."""

    def __init__(self, retries: Retries) -> None:
        self.made = 1
        self._retries = retries
        self._end = retries.clock() + retries.deadline

    @property
    def remaining(self) -> float:
        """Seconds until the deadline; never less than 1 ms, for a timeout cannot be 0."""
        return max(0.001, self._end - self._retries.clock())

    def again(self, after: float | None = None) -> bool:
        """Wait, at least `after` seconds where the service asks for that, and say True; False: give
        up.

        The wait doubles from try to try. A part of it is random, also on top of `after`, so that
        clients that were refused together do not come back together.
        """
        backoff = min(_LONGEST_S, _FIRST_S * 2 ** (self.made - 1)) * random.uniform(0.5, 1)
        wait = (after or 0.0) + backoff
        if self.made > self._retries.count or wait >= self.remaining:
            return False
        self._retries.sleep(wait)
        self.made += 1
        return True


def retry_after(response: httpx.Response) -> float | None:
    """Seconds of the header Retry-After, which is a number or a date; None where it is absent or
    malformed.
    """
    value = response.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
        return max(
            0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time()
        )
    except (ValueError, OverflowError):
        return None


def may_succeed(response: httpx.Response) -> bool:
    """Whether the same request may get another answer soon. To send one twice does no harm: each
    sets a state.
    """
    ours = errors.media_type(response) == errors.PROBLEM
    return response.status_code in BUSY or (response.status_code in LOST and not ours)


def is_passing(failure: httpx.RequestError) -> bool:
    """Whether a failure to get an answer may be over soon. A service that is too slow only gets
    slower by more.
    """
    return isinstance(
        failure, httpx.NetworkError | httpx.ConnectTimeout | httpx.RemoteProtocolError
    )
