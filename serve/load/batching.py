"""Batches that fill by themselves: what comes while the model is at work is its next batch.

Ray Serve's own `@serve.batch` closes a batch after a set time. With none it hands over one query
at a time, and any other time is added to every lone client's wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Generic, TypeVar

Asked = TypeVar("Asked")
Answered = TypeVar("Answered")
By = TypeVar("By")


class Batcher(Generic[Asked, Answered]):
    """A queue whose items `work` answers in batches, one at a time. Used from one event loop.

    Args:
        work: Answers a batch, in its order; an answer that is an exception is raised.
        most: Items of a batch.
        size: Tells as how many an item counts.
        wait_s: Seconds that the first item of a batch waits for others.
        thread: An executor of one thread, which others may share; None makes one.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Asked]], Sequence[Answered | Exception]],
        *,
        most: int,
        size: Callable[[Asked], int] = lambda _: 1,
        wait_s: float = 0.0,
        thread: ThreadPoolExecutor | None = None,
    ) -> None:
        self._work, self._most, self._size, self._wait_s = work, most, size, wait_s
        self._thread = thread or ThreadPoolExecutor(1, "batches")
        # And since when
        self._waiting: deque[tuple[Asked, asyncio.Future[Answered], float]] = deque()
        self._alone: set[asyncio.Future[Answered]] = set()
        self._come = asyncio.Event()  # another one has
        self._worker: asyncio.Task[None] | None = None

    async def __call__(self, asked: Asked, *, first: bool = False) -> Answered:
        """Return the answer, once its batch is done.

        `first` goes before all that wait, and waits for no others, nor for their answers: it is a
        batch by itself. An item that is cancelled while it waits is left out of the batch.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answered] = loop.create_future()
        put = self._waiting.appendleft if first else self._waiting.append
        put((asked, future, loop.time()))
        if first:
            self._alone.add(future)
        self._come.set()
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._run())
        return await future

    async def _run(self) -> None:
        while self._waiting:
            if self._wait_s:
                await self._for_others()
            if batch := self._next():
                await self._answer(batch)

    async def _for_others(self) -> None:
        """Wait until the first one has waited long enough, the batch is full, or one is alone."""
        until = self._waiting[0][2] + self._wait_s
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                while not (self._alone or self._is_full()):
                    self._come.clear()
                    await self._come.wait()

    def _is_full(self) -> bool:
        return sum(self._size(asked) for asked, *_ in self._waiting) >= self._most

    def _next(self) -> list[tuple[Asked, asyncio.Future[Answered]]]:
        """Take the items that come next and are waited for: one, and as many more as fit."""
        batch: list[tuple[Asked, asyncio.Future[Answered]]] = []
        room = self._most
        while self._waiting:
            asked, future, _ = self._waiting[0]
            if not future.done():
                size = self._size(asked)
                if batch and size > room:
                    break
                batch.append((asked, future))
                room = 0 if future in self._alone else room - size
            self._waiting.popleft()
            self._alone.discard(future)
            if room <= 0:
                break
        return batch

    async def _answer(self, batch: list[tuple[Asked, asyncio.Future[Answered]]]) -> None:
        loop = asyncio.get_running_loop()
        try:
            answers = await loop.run_in_executor(
                self._thread, self._work, [asked for asked, _ in batch]
            )
            together = list(zip(batch, answers, strict=True))
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), answer in together:
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)


def each(
    batch: Sequence[tuple[By, Asked]],
    work: Callable[[By, list[Asked]], Sequence[Answered]],
    *,
    again: Callable[[By, list[Asked]], bool] = lambda by, some: True,
) -> list[Answered | Exception]:
    """Answer a batch, those together that have the same `By`; one that fails fails no others.

    Where several fail together, each is tried alone, if `again` says that it is worth it.
    """
    outcomes: dict[int, Answered | Exception] = {}
    alike: dict[By, list[int]] = {}
    for row, (by, _) in enumerate(batch):
        alike.setdefault(by, []).append(row)
    waiting = list(alike.items())
    for by, rows in waiting:
        some = [batch[row][1] for row in rows]
        try:
            outcomes |= zip(rows, work(by, some), strict=True)
        except Exception as error:
            if len(rows) > 1 and again(by, some):
                waiting += [(by, [row]) for row in rows]
            outcomes |= dict.fromkeys(rows, error)
    return [outcomes[row] for row in range(len(batch))]
