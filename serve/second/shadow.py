"""The shadow: what the second model would have answered, compared with what was answered."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

from raycd.api import SearchRequest, SecondInfo
from serve.args import Second
from serve.errors import format_error
from serve.queries import SentImage

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


class Process(Protocol):
    """Where the second model runs. Its methods raise whatever keeps it from answering."""

    async def loaded(self) -> Loaded:
        """Return what became of its start, once it is over."""

    async def answer(self, asked: SearchRequest, sent: Sequence[SentImage]) -> Seen:
        """Return its answer to a search."""


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
    """

    def __init__(self, settings: Second, process: Process, observer: ShadowObserver) -> None:
        self._settings, self._process, self._observer = settings, process, observer
        self._loaded = Loaded(None, None)
        self._starting: asyncio.Task[None] | None = None
        self._at_work: set[asyncio.Task[None]] = set()
        self._failed = False

    def start(self) -> None:
        """Note, once it is known, whether the model is loaded. Returns at once."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._started())

    async def _started(self) -> None:
        try:
            self._loaded = await self._process.loaded()
        except Exception as error:
            self._loaded = Loaded(None, "its process has ended: the service's log says more")
            _log.error("the second model has not started: %s", format_error(error))

    def info(self) -> SecondInfo:
        """Return what /v1/info says of the second model."""
        share, (bundle, refused) = self._settings.shadow, self._loaded
        return SecondInfo(bundle=bundle, shadow=share, users=0.0, refused=refused)

    def samples(self) -> bool:
        """Choose whether a search is one of the share."""
        return random.random() < self._settings.shadow

    async def offer(
        self, asked: SearchRequest, sent: Sequence[SentImage], image_ids: Sequence[str]
    ) -> None:
        """Have a search answered and compared, unless too many are. Returns at once.

        `image_ids` are the results of the answer that has gone out.
        """
        if len(self._at_work) >= self._settings.waiting:
            self._observer.shadow("dropped")
            return
        task = asyncio.create_task(self._answer(asked, sent, image_ids))
        self._at_work.add(task)
        task.add_done_callback(self._at_work.discard)

    async def _answer(
        self, asked: SearchRequest, sent: Sequence[SentImage], image_ids: Sequence[str]
    ) -> None:
        try:
            seen = await self._process.answer(asked, sent)
        except Exception as error:  # whatever it is, nobody waits for this
            self._observer.shadow("failed")
            if not self._failed:  # once, not for every search
                _log.error("the second model did not answer: %s", format_error(error))
            self._failed = True
            return
        self._failed = False
        self._observer.shadow("answered")
        self._observer.compared(overlap(image_ids, seen.image_ids), seen.seconds)


def overlap(first: Sequence[str], second: Sequence[str]) -> float:
    """Return the share of the longer of two lists of results that is in both; of none, 1."""
    most = max(len(first), len(second))
    return len(set(first) & set(second)) / most if most else 1.0
