"""Clients that ask without a pause and count every answer: nothing is sent again."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import httpx

from tests.serve.asking import problem

ENDING_S = 5.0  # in the last phase: what is counted no more is still ending
TIMEOUT_S = 60.0  # longer than the service's own


class Ramp:
    """Clients of a service whose number changes while they ask.

    Attributes:
        answers: How often each status was answered, by what was asked for; what is no answer, by
            its name.
        replicas: What /readyz has said, and since when that was so: each replica says it for a
            second, so one may know less than the one that was asked before.
    """

    def __init__(self, url: str, picture: bytes) -> None:
        self.answers: Counter[tuple[str, str]] = Counter()
        self.replicas: list[tuple[float, int]] = []
        self._url, self._picture = url, picture
        self._wanted, self._numbers = 0, itertools.count()

    async def run(self, phases: list[tuple[int, int]], patience_s: float) -> None:
        """Have so many clients ask until so many replicas answer, phase by phase."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with (
            httpx.AsyncClient(base_url=self._url, limits=limits, timeout=TIMEOUT_S) as http,
            asyncio.TaskGroup() as group,
        ):
            for clients, replicas in phases:
                started, self._wanted = self._wanted, clients
                for number in range(started, clients):
                    group.create_task(self._client(http, number))
                async with asyncio.timeout(patience_s):
                    while not self.replicas or self.replicas[-1][1] != replicas:
                        await asyncio.sleep(0.2)
                        await self._is_ready(http)
            await asyncio.sleep(ENDING_S)
            self._wanted = 0

    async def _client(self, http: httpx.AsyncClient, number: int) -> None:
        turn = self._write if number == 0 else self._search
        while number < self._wanted:
            await turn(http)

    async def _search(self, http: httpx.AsyncClient) -> None:
        text = f"is number {next(self._numbers)}"
        image, form = {"image": ("x.png", self._picture, "image/png")}, {"text": text}
        asked = http.post("/v1/search", files=image, data=form)
        await self._counted("search", asked, self._found)

    async def _write(self, http: httpx.AsyncClient) -> None:
        """Add an image and find it, by whichever replica; then remove it."""
        image_id = f"new-{next(self._numbers)}"
        picture = {"image": ("x.png", self._picture, "image/png")}
        written = await self._counted("put", http.put(f"/v1/gallery/{image_id}", files=picture))
        if written is None:
            return
        asked = {"text": "is red", "among": [image_id]}
        version = {"min_version": written["version"]}
        await self._counted(
            "find", http.post("/v1/search", json=asked, params=version), self._found
        )
        await self._counted("delete", http.delete(f"/v1/gallery/{image_id}"))

    async def _is_ready(self, http: httpx.AsyncClient) -> None:
        health = await self._counted("readyz", http.get("/readyz"))
        if health is not None:
            self.replicas.append((time.monotonic() - health["age_s"], health["replicas"]))

    @staticmethod
    def _found(answer: dict[str, Any]) -> bool:
        return bool(answer["results"])

    async def _counted(
        self,
        what: str,
        request: Coroutine[Any, Any, httpx.Response],
        is_right: Callable[[dict[str, Any]], bool] = lambda _: True,
    ) -> dict[str, Any] | None:
        """Return an answer that is right; count it, and whatever else comes."""
        try:
            response = await request
        except httpx.TransportError as error:
            self.answers[what, type(error).__name__] += 1
            return None
        status, answer = str(response.status_code), None
        if response.status_code == 503:
            problem(response, 503)
            assert int(response.headers["Retry-After"]) >= 1
        elif response.is_success:
            answer = dict(response.json())
            if not is_right(answer):
                status += ", wrong"
        self.answers[what, status] += 1
        return answer
