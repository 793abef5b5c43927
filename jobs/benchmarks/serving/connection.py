"""A keep-alive HTTP/1.1 connection, as lean as can be: what the client spends is taken from the
server's cores.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple, Self, cast

from httptools import HttpResponseParser


class Response(NamedTuple):
    """What of an answer is kept."""

    status: int
    timing: str
    """The header Server-Timing."""


class Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self) -> None:
        self.usable = False
        """Whether another request may be sent."""
        self._parser = HttpResponseParser(self)
        self._timing = b""
        self._answer: asyncio.Future[Response] | None = None
        self._transport: asyncio.WriteTransport | None = None

    @classmethod
    async def open(cls, port: int) -> Self:
        """Connect to this machine. Raises OSError."""
        _, connection = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        return connection

    async def ask(self, request: bytes) -> Response:
        """Send a whole request and wait for its whole answer. Raises ConnectionError where the
        server hangs up.
        """
        if self._transport is None or not self.usable:
            raise ConnectionResetError("the connection is closed")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        """Hang up."""
        self.usable = False
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's."""
        self._transport, self.usable = (
            cast(asyncio.WriteTransport, transport),
            True,
        )  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        """asyncio's."""
        self._parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        """asyncio's."""
        self.usable = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError("the server hung up"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools's."""
        if name.lower() == b"server-timing":
            self._timing = value

    def on_message_complete(self) -> None:
        """httptools's."""
        response = Response(self._parser.get_status_code(), self._timing.decode("latin-1"))
        self.usable = self.usable and self._parser.should_keep_alive()
        self._timing = b""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(response)
