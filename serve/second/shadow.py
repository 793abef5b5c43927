"""The shadow: what the second model would have answered, compared with what was answered."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

from raycd.api import SearchRequest, SecondInfo
from raycd.errors import GalleryError
from serve.args import Second
from serve.engine import swap
from serve.engine.queries import QueryImage
from serve.errors import format_error

Outcome = Literal["answered", "failed", "dropped"]

_log = logging.getLogger("ray.serve")


class Seen(NamedTuple):
    """An answer that nobody gets."""

    image_ids: list[str]
    seconds: float
    """From the request to the answer, without the wait for others before it."""


class Loaded(NamedTuple):
    """What became of the second model's start."""

    bundle: str | None
    """Prefix of its bundle's digest; None: it was refused."""
    refused: str | None
    """Why it was."""
    without: int = 0
    """Images of the gallery that it cannot find."""
    because: str = ""
    """The same as `refused` with paths, for the log."""


class Process(Protocol):
    """Where the second model runs. Its methods raise whatever keeps it from answering."""

    async def loaded(self) -> Loaded:
        """Return what became of its start, once it is over."""

    async def answer(self, asked: SearchRequest, sent: Sequence[QueryImage]) -> Seen:
        """Return its answer to a search."""

    def end(self) -> None:
        """End what it does, so that it starts anew."""


class ShadowObserver(Protocol):
    """What records a shadow's work."""

    def shadow(self, outcome: Outcome) -> None:
        """Record what became of a search that was sampled."""

    def compared(self, overlap: float, seconds: float) -> None:
        """Record the share of the results that both have, and how long the second took."""


class Shadow:
    """A share of a replica's searches, which the second model answers, too. Of one event loop.

    Args:
        settings: The share, and how many searches may wait.
        process: Where the model runs.
        observer: What records its work.
        timeout_s: Seconds after which an answer is given up, and the process ended where it has
            given none in that time.
    """

    def __init__(
        self, settings: Second, process: Process, observer: ShadowObserver, timeout_s: float
    ) -> None:
        self._settings, self._process, self._observer = settings, process, observer
        self._timeout_s = timeout_s
        self._loaded, self._without = Loaded(None, None), 0
        self._starting: asyncio.Task[None] | None = None
        self._at_work: set[asyncio.Task[None]] = set()
        self._failed, self._heard = False, 0.0

    def start(self, without: int) -> None:
        """Note, once it is known, whether the model is loaded. Returns at once.

        It may lack no more images of the gallery than the first, which is `without` so many.
        """
        if self._starting is None:
            self._without = without
            self._starting = asyncio.create_task(self._started())

    async def _started(self) -> None:
        try:
            loaded = await self._process.loaded()
            swap.check(self._without, loaded.without)
            self._loaded, self._heard = loaded, time.monotonic()
            if loaded.refused:
                _log.error("the second model is refused: %s", loaded.because)
        except GalleryError as error:
            self._loaded = Loaded(None, swap.reason(error))
            _log.error("the second model is refused: %s", format_error(error))
        except Exception as error:
            self._loaded = Loaded(None, "its process has ended: the service's log says more")
            _log.error("the second model has not started: %s", format_error(error))

    def info(self) -> SecondInfo:
        """Return what /v1/info says of the second model."""
        share, loaded = self._settings.shadow, self._loaded
        return SecondInfo(bundle=loaded.bundle, shadow=share, users=0.0, refused=loaded.refused)

    def samples(self) -> bool:
        """Choose whether a search is one of the share."""
        return random.random() < self._settings.shadow

    async def offer(
        self, asked: SearchRequest, sent: Sequence[QueryImage], image_ids: Sequence[str]
    ) -> None:
        """Have a search answered and compared, unless too many are. Returns at once.

        While the model is not loaded it is dropped, and has failed where it cannot be.

        `image_ids` are the results of the answer that has gone out.
        """
        if self._loaded.refused:
            self._observer.shadow("failed")
            return
        if self._loaded.bundle is None or len(self._at_work) >= self._settings.waiting:
            self._observer.shadow("dropped")
            return
        task = asyncio.create_task(self._answer(asked, sent, image_ids))
        self._at_work.add(task)
        task.add_done_callback(self._at_work.discard)

    async def _answer(
        self, asked: SearchRequest, sent: Sequence[QueryImage], image_ids: Sequence[str]
    ) -> None:
        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                seen = await self._process.answer(asked, sent)
        except Exception as error:  # whatever it is, nobody waits for this
            self._observer.shadow("failed")
            # It answers one at a time: one that waits behind others is late, and it is well
            if limit.expired() and time.monotonic() - self._heard >= self._timeout_s:
                self._restart()
            if not self._failed:  # once, not for every search
                _log.error("the second model did not answer: %s", format_error(error))
            self._failed = True
            return
        self._failed, self._heard = False, time.monotonic()
        self._observer.shadow("answered")
        self._observer.compared(overlap(image_ids, seen.image_ids), seen.seconds)

    def _restart(self) -> None:
        if self._loaded.bundle is not None:  # or it starts already
            self._loaded = Loaded(None, None)
            self._process.end()
            self._starting = asyncio.create_task(self._started())


def overlap(first: Sequence[str], second: Sequence[str]) -> float:
    """Return the share of the longer of two lists of results that is in both; of none, 1."""
    most = max(len(first), len(second))
    return len(set(first) & set(second)) / most if most else 1.0
