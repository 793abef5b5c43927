"""Batches that fill by themselves: whatever comes while the model is at work is its next batch.

Ray Serve's own `@serve.batch` closes a batch when a time has passed: with none it hands over one query at a time, and
any other is added to every lone client's wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Asked = TypeVar("Asked")
Given = TypeVar("Given")


class Batcher(Generic[Asked, Given]):
    """Runs `work` on batches in a thread of its own, one at a time. Used from one event loop.

    Args:
        work: Answers a batch, in its order.
        most: Queries of a batch.
        wait_s: Seconds that the first query of a batch waits for others.
    """

    def __init__(self, work: Callable[[Sequence[Asked]], Sequence[Given]], *, most: int, wait_s: float = 0.0) -> None:
        self._work, self._most, self._wait_s = work, most, wait_s
        self._thread = ThreadPoolExecutor(1, "model")
        self._queue: asyncio.Queue[tuple[Asked, asyncio.Future[Given]]] = asyncio.Queue()
        self._worker: asyncio.Task[None] | None = None

    async def __call__(self, asked: Asked) -> Given:
        """The answer, once a batch has brought it. Whoever is cancelled while waiting is left out of the batch."""
        loop = asyncio.get_running_loop()
        if self._worker is None:
            self._worker = loop.create_task(self._run())
        future: asyncio.Future[Given] = loop.create_future()
        self._queue.put_nowait((asked, future))
        return await future

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._queue.get()]
            if self._wait_s:
                await asyncio.sleep(self._wait_s)
            while len(batch) < self._most and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            batch = [(asked, future) for asked, future in batch if not future.done()]
            try:
                answers = await loop.run_in_executor(self._thread, self._work, [asked for asked, _ in batch])
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)
