"""The two wires under the client: one blocks its thread, the other waits in an event loop.

The client is written once, as coroutines. Over a BlockingWire these never wait for anything, so
`now` runs them to their end without an event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from inspect import isawaitable
from typing import Any, TypeVar

import httpx

from raycd.client.retry import Retries
from raycd.errors import ConfigError

T = TypeVar("T")


class BlockingWire:
    """httpx's blocking client."""

    def __init__(self, retries: Retries, **settings: Any) -> None:
        self._http, self._pause = httpx.Client(**settings), retries.sleep or time.sleep
        self.request = self._http.build_request

    async def send(self, request: httpx.Request, *, stream: bool) -> httpx.Response:
        """Return the response; without success it is read whole, as its body is needed."""
        response = self._http.send(request, stream=stream)
        if not response.is_success:
            response.read()
        return response

    async def sleep(self, seconds: float) -> None:
        self._pause(seconds)

    async def close(self) -> None:
        self._http.close()


class AsyncWire:
    """httpx's client for an event loop: the first one that it is used in."""

    def __init__(self, retries: Retries, **settings: Any) -> None:
        self._http = httpx.AsyncClient(**settings)
        self._pause = retries.sleep or asyncio.sleep
        self._loop: asyncio.AbstractEventLoop | None = None
        self.request = self._http.build_request

    async def send(self, request: httpx.Request, *, stream: bool) -> httpx.Response:
        """Return the response; without success it is read whole, as its body is needed."""
        self._check_loop()
        response = await self._http.send(request, stream=stream)
        if not response.is_success:
            await response.aread()
        return response

    async def sleep(self, seconds: float) -> None:
        waiting = self._pause(seconds)
        if isawaitable(waiting):
            await waiting

    async def close(self) -> None:
        self._check_loop()
        await self._http.aclose()

    def _check_loop(self) -> None:
        """Raise ConfigError in another event loop: connections belong to that of their first use.

        httpx would fail now and then, when it takes a connection that it has kept.
        """
        running = asyncio.get_running_loop()
        self._loop = self._loop or running
        if running is not self._loop:
            raise ConfigError(
                "an AsyncClient is used in a second event loop",
                got="connections that belong to the first one",
                do="make a client in each asyncio.run, or use Client, which needs no event loop",
            )


def now(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine over a BlockingWire."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise AssertionError("a coroutine over a blocking wire has waited")
