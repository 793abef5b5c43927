"""A thread that keeps the gallery which a replica searches at the state of its database."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor

from raycd.search.searcher import Searcher
from serve.errors import format_error

ASKED = 4  # times in `lag_s` that the database is asked for changes

_log = logging.getLogger("ray.serve")


class Following(ABC):
    """A gallery that is followed from `_start` until `stop`.

    Args:
        searcher: Its view is replaced whenever the gallery has changed.
        lag_s: Seconds after which a change is known.
    """

    _meanwhile = "its last known state is searched"

    def __init__(self, searcher: Searcher, lag_s: float) -> None:
        self._searcher, self._lag_s = searcher, lag_s
        self._heard, self._failed = time.monotonic(), False
        self._stopped, self._wake = threading.Event(), threading.Event()
        self._beside = ThreadPoolExecutor(1, "beside")  # what the thread must not wait for
        self._news: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    @property
    def lag_s(self) -> float:
        """Seconds since the view had all that was in the database."""
        return time.monotonic() - self._heard

    @property
    @abstractmethod
    def without(self) -> int:
        """Images that cannot be found: they have no feature, and their pictures cannot be read."""

    @abstractmethod
    def _follow(self) -> bool:
        """Bring the view nearer to the state of the database; return whether there may be more.

        Where there is no more, `_is_followed` is called.
        """

    def stop(self) -> None:
        """Stop following, and wake whoever waits for a version."""
        self._stopped.set()
        self._wake.set()

    def _start(self) -> None:
        threading.Thread(target=self._run, name="follower", daemon=True).start()

    def _is_followed(self, began: float) -> None:
        """Note that the view has all that was in the database at that time."""
        self._heard = began
        self._wake_waiting()

    async def wait_for_version(self, version: int) -> bool:
        """Wait until the view has this version, or is followed no more.

        Returns whether it has; False where the database itself does not.
        """
        loop, asked = asyncio.get_running_loop(), time.monotonic()
        self._wake.set()  # once: the version is in the database already
        while not self._stopped.is_set():
            since = self._heard  # what was in the database then is in the view that is read next
            if self._searcher.view.version >= version:
                break
            if since >= asked:
                return False
            news = self._news  # the other thread may take it away at any time
            if news is None:
                news = self._news = (loop, asyncio.Event())
            if self._heard == since and not self._stopped.is_set():
                await news[1].wait()
        return True

    def _run(self) -> None:
        while not self._stopped.is_set():
            began = time.monotonic()
            try:
                more = self._follow()
                self._failed = False
            except Exception as error:
                if not self._failed:  # once, not every quarter of a second
                    _log.error(
                        "the gallery is not followed, %s: %s", self._meanwhile, format_error(error)
                    )
                self._failed, more = True, False
            if more:  # half of the time is the searches': Python's lock was held
                self._stopped.wait(time.monotonic() - began)
            else:
                self._wake.wait(self._lag_s / ASKED)
                self._wake.clear()
        self._beside.shutdown(wait=False)
        self._wake_waiting()

    def _wake_waiting(self) -> None:
        if self._news is not None:
            (loop, news), self._news = self._news, None
            loop.call_soon_threadsafe(news.set)
