"""The recorder of feedback: searches and events, written by a thread for which nobody waits."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from random import Random
from typing import Protocol

from raycd.api import SearchRequest, SearchResponse
from raycd.errors import GalleryError
from raycd.feedback import explore
from raycd.feedback.records import Event, LoggedSearch
from raycd.gallery_db import GalleryDatabase, events
from raycd.search.query import Result
from serve.args import ServeArgs
from serve.errors import format_error

WRITTEN = 500  # records of one transaction, at most
PAUSE_S = 0.5  # between two of them: what comes meanwhile is written together
EXPIRES_S = 3600.0  # between two removals of what is too old
DAY_S = 86_400.0

_log = logging.getLogger("ray.serve")


class RecorderObserver(Protocol):
    """What records how the recorder does."""

    def feedback(self, written: int, lost: int) -> None:
        """Record how many searches and events were written, and lost, since the last time."""


class Recorder:
    """A queue of at most `events_queue` records, and the thread that empties it into the database.

    What finds the queue full is lost, and counted. While the database does not answer, what is in
    the queue stays there.

    Args:
        gallery_db: Where they are written.
        args: How many may wait (events_queue), and what is kept for how long.
        observer: What is told of losses.
    """

    def __init__(
        self, gallery_db: GalleryDatabase, args: ServeArgs, observer: RecorderObserver
    ) -> None:
        self._gallery_db, self._args, self._observer = gallery_db, args, observer
        self._random = Random()
        self._waiting: deque[LoggedSearch | Event] = deque()
        self._lost = 0
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._expires, self._failed = 0.0, False
        self._thread = threading.Thread(target=self._run, name="feedback", daemon=True)
        self._thread.start()

    def put(self, records: Sequence[LoggedSearch | Event]) -> bool:
        """Have records written soon, all or none; return whether there was room for them."""
        with self._lock:
            room = self._args.events_queue - len(self._waiting)
            if self._stopped.is_set():  # the answer says that they were not taken
                return False
            if len(records) > room:
                self._lost += len(records)
                return False
            self._waiting.extend(records)
        return True

    def shown(
        self, results: list[Result], offset: int
    ) -> tuple[list[Result], tuple[int, int] | None]:
        """Return the results as they are shown, and the positions that a coin was tossed for."""
        first_page = len(results) if offset == 0 else 0
        drawn = explore.draw(self._random, first_page, self._args.explore)
        if drawn is None:
            return results, None
        (first, second), swapped = drawn
        if swapped:
            results = list(results)
            results[first], results[second] = results[second], results[first]
        return results, (first, second)

    def record(
        self,
        asked: SearchRequest,
        found: SearchResponse,
        digest: str,
        explored: tuple[int, int] | None,
    ) -> None:
        """Keep a search and what it showed. `digest` is that of the bundle that answered.

        One of more than an image and a text is kept without its image: it is no triplet.
        """
        search = LoggedSearch(
            *(found.query_id, time.time(), asked.image_id if _is_plain(asked) else None),
            asked.text if asked.text and self._args.events_texts == "text" else None,
            hashlib.sha256(asked.text.encode()).hexdigest() if asked.text else None,
            digest[:12],
            asked.offset,
            tuple(result.image_id for result in found.results),
            tuple(result.relative_score for result in found.results),
            explored,
        )
        self.put([search])

    def stop(self) -> None:
        """Write what waits, as far as the database takes it, and end the thread."""
        with self._lock:  # what is put before is written, what comes after is refused
            self._stopped.set()
        self._thread.join()
        with self._lock:
            lost = len(self._waiting) + self._lost
            self._waiting.clear()
            self._lost = 0
        if lost:
            self._observer.feedback(0, lost)
            _log.error("%s searches and events were lost: their database did not answer", lost)

    def _run(self) -> None:
        while not self._stopped.wait(PAUSE_S):
            self._expire()
            self._write()
        self._write()

    def _write(self) -> None:
        """Write all that waits; where the database does not answer, leave it there."""
        written = 0
        while self._waiting:
            batch = [self._waiting[at] for at in range(min(WRITTEN, len(self._waiting)))]
            try:
                written += self._store(batch)
            except GalleryError as error:
                self._tell("feedback waits for its database: %s", error)
                break
            self._failed = False
            with self._lock:
                for _ in batch:
                    self._waiting.popleft()
        with self._lock:
            lost, self._lost = self._lost, 0
        if written or lost:
            self._observer.feedback(written, lost)

    def _store(self, batch: Sequence[LoggedSearch | Event]) -> int:
        """Return how many were stored. One that cannot be leaves the others."""
        try:
            events.write(self._gallery_db, batch)
        except GalleryError:
            raise
        except Exception as error:  # a text that no database takes, or a mistake of ours
            if len(batch) > 1:
                return sum(self._store([one]) for one in batch)
            _log.error("feedback was lost: %s", format_error(error))
            with self._lock:
                self._lost += 1
            return 0
        return len(batch)

    def _expire(self) -> None:
        if self._args.events_days == 0 or time.monotonic() < self._expires:
            return
        self._expires = time.monotonic() + EXPIRES_S
        try:
            events.forget(self._gallery_db, time.time() - DAY_S * self._args.events_days)
        except Exception as error:  # whatever it is, the thread goes on writing
            self._tell("old feedback was not removed: %s", error)

    def _tell(self, message: str, error: Exception) -> None:
        if not self._failed:  # once, not twice a second
            reason = error.reason if isinstance(error, GalleryError) else format_error(error)
            _log.error(message, reason)
        self._failed = True


def _is_plain(asked: SearchRequest) -> bool:
    """Tell whether a search is of an image and a text, and of nothing that a triplet has not."""
    more = asked.images or asked.reference or asked.negative_text or asked.boost
    return not more and asked.image_weight > 0 and asked.text_weight > 0
