"""The follower of a database: it keeps the gallery that a replica searches at its state."""

from __future__ import annotations

import logging
import os
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from raycd import bundle
from raycd.gallery.live import Live, contents
from raycd.gallery.recent import Recent
from raycd.gallery.records import Changes
from raycd.gallery.static import Gallery
from raycd.gallery_db.tables import Room
from raycd.index import Index
from raycd.index.blocks import FeatureRows
from raycd.index.choice import EXACT, MAPPED, kind_for, resident_mib
from raycd.index.half import room
from raycd.search.searcher import Searcher
from serve.args import ServeArgs
from serve.errors import format_error
from serve.live.following import Following
from serve.live.store import GalleryStore
from serve.live.unencoded import ENCODED, Unencoded

NICE = 10  # niceness of the thread that builds an index: a tenth of a core that others want
BEHIND = 500  # changes that a new index may lack when it is taken over
TAKEN = 2000  # changes that are fetched at once: searches go on between them
ROUNDS = 500  # times that changes are fetched until a new index lacks no more than BEHIND

_log = logging.getLogger("ray.serve")


class Follower(Following):
    """A gallery that was loaded, and is followed in a thread of its own until `stop`.

    Args:
        searcher: Its view is replaced whenever the gallery has changed.
        store: Where the gallery is kept.
        model: The thread that the model runs in.
        args: How soon a change is known (lag_s), and the limits of images.

    Raises:
        GalleryError: The gallery cannot be read, or has more images than ENCODED that the encoder
            has not encoded.
    """

    def __init__(
        self, searcher: Searcher, store: GalleryStore, model: ThreadPoolExecutor, args: ServeArgs
    ) -> None:
        super().__init__(searcher, args.lag_s)
        self._store = store
        self._fingerprint = searcher.bundle.manifest.encoder.fingerprint
        self._settings = searcher.bundle.config.index
        self._device = "cuda" if args.index_on == "gpu" else "cpu"
        self._unencoded = Unencoded(searcher, store, model, args)
        self._builder: threading.Thread | None = None
        self._built: Live | None = None
        self._listing: Future[Recent] | None = None
        self._live = self._loaded()
        gallery_db, seen = store.gallery_db, self._live.seen
        self._unencoded.check_few(
            gallery_db.unencoded(self._fingerprint, limit=ENCODED + 1, after=seen)
        )
        while self._follow():
            pass
        self._start()

    @property
    def without(self) -> int:
        """Images that cannot be found: they have no feature, and their pictures cannot be read."""
        return len(self._live.without)

    def _loaded(self) -> Live:
        # The bundle's gallery and its index, where the database began with that; else an exact
        # index of the database's own, until a better one is built.
        loaded, gallery_db = self._searcher.bundle, self._store.gallery_db
        digest = loaded.manifest.files[bundle.GALLERY]
        seed = gallery_db.seed() or gallery_db.begin(
            bundle.gallery_parts(loaded.folder), self._fingerprint, digest
        )
        if seed is not None and seed.digest == digest:
            return self._new(loaded.index, self._searcher.own.gallery, seed.version)
        # Where the memory has a bound, its features are in files
        made: Room = room if self._in_files else np.empty
        missing = gallery_db.unencoded(self._fingerprint, limit=ENCODED + 1)
        self._unencoded.check_few(missing)
        self._unencoded.encoded(missing)  # so that each is loaded in its place
        found = gallery_db.load(self._fingerprint, room=made)
        # Where there are no features, their size is unknown.
        features_GD = found.features_GD.reshape(-1, loaded.index.dim)
        exact = {"kind": "half" if self._in_files else "flat"}
        index = Index.build(features_GD, self._settings.model_copy(update=exact))
        live = self._new(index, Gallery(found.table), found.version)
        # Those that came meanwhile, too
        live.apply(Changes(found.version, self._unencoded.encoded(found.unencoded)))
        return live

    @property
    def _in_files(self) -> bool:
        # Whether features are never in memory as a whole.
        return bool(self._settings.memory_mib) or self._settings.kind in MAPPED

    def _new(self, index: Index, gallery: Gallery, version: int) -> Live:
        index.threads = self._searcher.bundle.index.threads
        return Live(
            index.on(self._device),
            gallery,
            version,
            flat_up_to=self._settings.flat_up_to,
            memory_mib=self._settings.memory_mib,
        )

    def _follow(self) -> bool:
        if self._built is not None:
            self._live, self._built = self._built, None
        began, more = time.monotonic(), False
        if self._store.gallery_db.version() > self._live.seen:
            more = self._take(self._live).more
        if self._live.view.version >= self._searcher.view.version:  # a new index may be behind
            self._searcher.view = self._live.view
        if more:
            self._wake_waiting()
        else:
            self._is_followed(began)
        self._start_lists()
        if (
            self._builder is None
            and self._built is None
            and (self._live.needs_rebuild or self._provisional())
        ):
            self._builder = threading.Thread(target=self._rebuild, name="index", daemon=True)
            self._builder.start()
        if not more:
            self._unencoded.retry()
        return more

    def _take(self, live: Live) -> Changes:
        changes = self._store.gallery_db.changes(live.seen, self._fingerprint, limit=TAKEN)
        live.apply(replace(changes, rows=self._unencoded.encoded(changes.rows)))
        return changes

    def _start_lists(self) -> None:
        # What came lately is put into lists by another thread, so that nothing waits for it.
        if self._listing is not None and self._listing.done():
            listing, self._listing = self._listing, None
            self._live.take_lists(listing.result())
        if self._listing is None and self._live.recent.needs_merge:
            self._listing = self._beside.submit(self._live.recent.put_into_lists)

    def _provisional(self) -> bool:
        # Whether the index is exact only because a better one would take too long at the start.
        view = self._live.view
        return (
            view.index.kind in EXACT
            and view.index.kind != kind_for(self._settings, len(view), view.index.dim)
            and len(view.gallery) > self._settings.flat_up_to
        )

    def _rebuild(self) -> None:
        # A new index of all that is there, then what has changed meanwhile.
        try:
            view = self._live.view
            table, kept = contents(view)
            gallery = Gallery(table)
            # As a whole where there is memory for it: gathering holds Python's lock, see below
            features_GD = kept if self._in_files else kept[:]
            # Searches go first, but only here: what comes before and after holds Python's lock,
            # for which a thread of low priority would make them wait.
            with ThreadPoolExecutor(1, "index", initializer=_yield_to_others) as thread:
                index = thread.submit(self._indexed, features_GD, view.index).result()
            self._warn_of_memory(index)
            built = self._new(index, gallery, view.version)
            built.without = set(self._live.without)
            for _ in range(ROUNDS):
                changes = self._take(built)
                if built.recent.needs_merge:
                    built.take_lists(built.recent.put_into_lists())
                if not changes.more and len(changes.rows) < BEHIND:
                    break
            self._built = built
        except Exception as error:
            _log.error(
                "the new index could not be built, the old one goes on: %s", format_error(error)
            )
            self._stopped.wait(60)
        finally:
            self._builder = None

    def _warn_of_memory(self, index: Index) -> None:
        needed = resident_mib(index.kind, self._settings, index.size, index.dim)
        if self._settings.memory_mib and needed > self._settings.memory_mib:
            _log.warning(
                "the index of %d images takes %.0f MiB as %s, index.memory_mib is %d",
                index.size,
                needed,
                index.kind,
                self._settings.memory_mib,
            )

    def _indexed(self, features_GD: FeatureRows, like: Index) -> Index:
        loaded = self._searcher.bundle
        return bundle.build_index(
            loaded.encoder,
            loaded.head,
            features_GD,
            loaded.config,
            loaded.manifest.example_texts,
            threads=1,
            like=like,
        )


def _yield_to_others() -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
