"""The follower of a gallery that a search engine has: this process holds no index.

One replica of all that have the gallery pushes the database's changes to the engine, the one with
the lease. Each reads from the collection's marker how far that has come.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from uuid import uuid4

from raycd import bundle
from raycd.errors import GalleryError
from raycd.gallery_db import listing
from raycd.gallery_db.leases import Lease
from raycd.gallery_engine import expressions, pushing
from raycd.gallery_engine.address import Address
from raycd.gallery_engine.collection import Collection, Marker
from raycd.gallery_engine.pushing import Push
from raycd.gallery_engine.view import EngineView, GalleryFacts
from raycd.search.searcher import Searcher
from serve.args import ServeArgs
from serve.errors import format_error
from serve.live.following import ASKED, Following
from serve.live.store import GalleryStore
from serve.live.unencoded import ENCODED, Unencoded

_EMPTY = Marker(version=0, until=1)  # nothing may be searched yet
PATIENCE_S = 60.0  # that an engine may be away while a bundle waits for its collection
TRIES = 6  # to take the lease, in the time that it lasts
COUNTED = 10  # times that a count of the whole gallery took lie between two of them

_log = logging.getLogger("ray.serve")


class EngineFollower(Following):
    """A gallery in a search engine, pushed and followed in threads of their own until `stop`.

    It starts at once, whatever the engine does. Until the collection is whole, searches raise
    GalleryError.

    Args:
        searcher: Its view is replaced whenever the collection has come further.
        store: Where the gallery is kept.
        model: The thread that the model runs in.
        args: The address of the engine, and how soon a change is known (lag_s).

    Raises:
        GalleryError: The database does not answer, or has more images than ENCODED that the encoder
            has not encoded.
        ConfigError: The engine's address is malformed, or its client is not installed.
    """

    _meanwhile = "nothing is searched"

    def __init__(
        self, searcher: Searcher, store: GalleryStore, model: ThreadPoolExecutor, args: ServeArgs
    ) -> None:
        super().__init__(searcher, args.lag_s)
        self._gallery_db, loaded = store.gallery_db, searcher.bundle
        self._fingerprint = loaded.manifest.encoder.fingerprint
        if self._gallery_db.seed() is None:
            digest = loaded.manifest.files[bundle.GALLERY]
            self._gallery_db.begin(bundle.gallery_parts(loaded.folder), self._fingerprint, digest)
        self._unencoded = Unencoded(searcher, store, model, args)
        name = pushing.name(self._gallery_db, self._fingerprint)
        address = Address.parse(args.gallery_engine)
        address.check_installed()
        self._collection = Collection(address, name, loaded.index.dim)
        if not self._is_whole():
            self._unencoded.check_few(
                self._gallery_db.unencoded(self._fingerprint, limit=ENCODED + 1)
            )
        # A connection of its own: what is pushed may take seconds
        pushed = Collection(address, name, loaded.index.dim)
        lease = Lease(self._gallery_db, name, uuid4().hex, pushing.LEASE_S)
        encoded = self._unencoded.encoded
        self._push = Push(self._gallery_db, self._fingerprint, pushed, encoded, lease)
        self._counting: Future[tuple[int, GalleryFacts]] | None = None
        self._counted, self._next_count = -1, 0.0
        self._view = self._searcher.view = EngineView(
            self._collection,
            _EMPTY,
            0,
            GalleryFacts.none(loaded.index.dim),
            partial(listing.page, self._gallery_db),
        )
        self._start()
        self._pusher = threading.Thread(target=self._run_push, name="pusher", daemon=True)
        self._pusher.start()

    def _is_whole(self) -> bool:
        # Then nobody needs to look through the whole database at the start
        try:
            marker = self._collection.marker()
        except GalleryError:
            return False
        return marker is not None and marker.whole

    @property
    def without(self) -> int:
        """Images that cannot be found: they have no feature, and their pictures cannot be read."""
        return len(self._gallery_db.unencoded(self._fingerprint, limit=ENCODED))

    def check(self) -> None:
        """Raise GalleryError unless the collection is whole and the engine answers."""
        self._view.check()

    def wait_until_current(self) -> None:
        """Wait until the collection has what is in the database now, or this is stopped.

        Raises:
            GalleryError: The engine has not answered for PATIENCE_S.
        """
        answered, newest = time.monotonic(), self._gallery_db.version()
        while not (
            self._stopped.is_set() or (self._view.marker.whole and self._view.version >= newest)
        ):
            self._stopped.wait(self._lag_s / ASKED)
            if self._collection.failed is None:
                answered = time.monotonic()
            elif time.monotonic() - answered > PATIENCE_S:
                raise GalleryError(self._collection.failed, "engine")

    def _follow(self) -> bool:
        began, newest = time.monotonic(), self._gallery_db.version()
        marker = self._collection.marker() or _EMPTY
        if marker != self._view.marker:
            size = (
                self._collection.count(expressions.ALL, written=marker.written)
                if marker.version
                else 0
            )
            self._show(marker, size, self._view.facts)
        self._count()
        if marker.whole and marker.version >= newest:
            self._is_followed(began)
        else:
            self._wake_waiting()
        return False  # what is missing, another thread pushes

    def _show(self, marker: Marker, size: int, facts: GalleryFacts) -> None:
        self._view = EngineView(self._collection, marker, size, facts, self._view.pages)
        self._searcher.view = self._view

    def _count(self) -> None:
        # By another thread: it reads the whole database, and versions are followed meanwhile.
        if self._counting is not None and self._counting.done():
            counting, self._counting = self._counting, None
            self._counted, facts = counting.result()
            self._show(self._view.marker, self._view.size, facts)
        due = time.monotonic() >= self._next_count and self._view.version != self._counted
        if self._counting is None and due and self._view.marker.whole:
            self._counting = self._beside.submit(self._facts, self._view)

    def _facts(self, view: EngineView) -> tuple[int, GalleryFacts]:
        began = time.monotonic()
        try:
            facts = GalleryFacts(
                listing.category_counts(self._gallery_db),
                listing.attribute_counts(self._gallery_db),
                view.sampled_moments(),
            )
        finally:
            ended = time.monotonic()
            self._next_count = ended + COUNTED * (ended - began)
        return view.version, facts

    def _run_push(self) -> None:
        failed = known = False
        while not self._stopped.is_set():
            known = known and self._push.holds
            try:
                more = self._push.advance()
                if self._push.holds and not more:
                    if not known:  # those whose stores failed while another process pushed
                        self._unencoded.put_off(self._gallery_db.unencoded(self._fingerprint))
                    known = True
                    self._unencoded.retry()
                failed = False
            except Exception as error:
                more = False
                if not failed:  # once, not every quarter of a second
                    _log.error("changes are not pushed to the engine: %s", format_error(error))
                failed = True
            if not more:
                held = self._push.holds
                self._stopped.wait(self._lag_s / ASKED if held else pushing.LEASE_S / TRIES)
        try:
            self._push.close()
        except GalleryError as error:
            _log.warning("the lease of the engine's collection stays: %s", format_error(error))
