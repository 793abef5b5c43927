"""The time that a request may take, and the end of what threads do for one that has been given up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from contextvars import ContextVar, copy_context
from typing import Any, TypeVar

from serve import problems

T = TypeVar("T")

_given_up: ContextVar[threading.Event | None] = ContextVar("given_up", default=None)


class Deadline(asyncio.Timeout):
    """`async with Deadline(seconds)`: beyond them 503, whatever a client's headers say. `then`:
    what that means.
    """

    def __init__(self, seconds: float, *, then: str = "") -> None:
        self._seconds, self._then = seconds, then
        super().__init__(asyncio.get_running_loop().time() + seconds)

    async def __aexit__(self, *info: Any) -> bool | None:
        try:
            return await super().__aexit__(*info)
        except TimeoutError:
            raise problems.busy(
                f"the request took longer than {self._seconds:g} s (timeout_s){self._then}"
            ) from None


class GivenUp(Exception):
    """Nobody waits for this thread's work any more."""


async def in_thread(threads: Executor, work: Callable[[], T]) -> T:
    """Work done by one of the threads, and no longer than it is waited for: it calls `check`
    between its steps.
    """
    event, context = threading.Event(), copy_context()
    context.run(_given_up.set, event)
    try:
        return await asyncio.get_running_loop().run_in_executor(threads, context.run, work)
    except asyncio.CancelledError:
        event.set()
        raise


def check() -> None:
    """Raises GivenUp where the request that this thread works for has been given up."""
    event = _given_up.get()
    if event is not None and event.is_set():
        raise GivenUp
