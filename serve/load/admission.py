"""How much a replica takes on at a time, and for how long. More is refused, not kept waiting."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar, copy_context
from typing import TypeVar

from serve.errors import Busy

T = TypeVar("T")

_ends_at: ContextVar[float | None] = ContextVar("ends_at", default=None)
_given_up: ContextVar[threading.Event | None] = ContextVar("given_up", default=None)


class Admission:
    """Requests of one kind at work and waiting in a replica, at most `most`.

    Used from one event loop. `what` they are is in the message of a refusal.
    """

    def __init__(self, most: int, what: str = "searches") -> None:
        self.most, self.what, self.busy = most, what, 0

    def check(self, count: int = 1) -> None:
        """Raise Busy where the replica has not so many slots left."""
        if self.busy + count > self.most:
            raise Busy(
                f"the service is busy with {self.busy} {self.what} (max_queue); "
                "try again in a moment"
            )

    @contextmanager
    def slot(self, count: int = 1) -> Iterator[None]:
        """Hold slots for one request. Raises Busy where there are none."""
        if count > 0:
            self.check(count)
        self.busy += count
        try:
            yield
        finally:
            self.busy -= count


@asynccontextmanager
async def deadline(seconds: float, *, then: str = "") -> AsyncIterator[None]:
    """Raise Busy where the block takes longer than a request may.

    `then` ends the message with what being late means.
    """
    now, latest = time.monotonic(), _ends_at.get()
    ends = now + seconds if latest is None else min(now + seconds, latest)
    token = _ends_at.set(ends)
    try:
        async with asyncio.timeout(max(0.0, ends - now)) as limit:
            yield
    except TimeoutError:
        if not limit.expired():  # one of the block's own
            raise
        raise Busy(f"the request took longer than {seconds:g} s (timeout_s){then}") from None
    finally:
        _ends_at.reset(token)


@contextmanager
def all_within(seconds: float) -> Iterator[None]:
    """Have every `deadline` inside of the block end in so many seconds at the latest."""
    token = _ends_at.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _ends_at.reset(token)


def ends_at() -> float | None:
    """Return the time of `time.monotonic` when the request is given up; None: never."""
    return _ends_at.get()


class GivenUp(Exception):
    """Nobody waits for this thread's work any more."""


async def run_in_thread(threads: Executor, work: Callable[[], T]) -> T:
    """Return what `work` returns in one of the threads, which ends when nobody waits for it.

    Python cannot stop a thread: `work` calls `check_deadline` between its steps.
    """
    event, context = threading.Event(), copy_context()
    context.run(_given_up.set, event)
    try:
        return await asyncio.get_running_loop().run_in_executor(threads, context.run, work)
    except asyncio.CancelledError:
        event.set()
        raise


def check_deadline() -> None:
    """Raise GivenUp where the request that this thread works for has been given up."""
    event = _given_up.get()
    if event is not None and event.is_set():
        raise GivenUp
