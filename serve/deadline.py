"""The time that a request may take."""

from __future__ import annotations

import asyncio
from typing import Any

from serve import problems


class Deadline(asyncio.Timeout):
    """`async with Deadline(seconds)`: beyond them 503, whatever a client's headers say. `then`: what that means."""

    def __init__(self, seconds: float, *, then: str = "") -> None:
        self._seconds, self._then = seconds, then
        super().__init__(asyncio.get_running_loop().time() + seconds)

    async def __aexit__(self, *info: Any) -> bool | None:
        try:
            return await super().__aexit__(*info)
        except TimeoutError:
            raise problems.busy(f"the request took longer than {self._seconds:g} s (timeout_s){self._then}") from None
