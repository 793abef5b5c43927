"""Writes to the live gallery: pictures are encoded together, and changes committed together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray

from raycd.errors import GalleryError, RaycdError
from raycd.gallery.records import Change, Delete, Done, Put
from raycd.search.searcher import Searcher
from serve.live.store import GalleryStore
from serve.load.admission import run_in_thread
from serve.load.batching import Batcher, each
from serve.monitoring import tracing

_log = logging.getLogger("ray.serve")

COMMITTED = 1000  # changes of one transaction, at most
ENCODED = 16  # pictures that are encoded at once: searches wait that long
# Reasons after which the change may have been made, so that its picture must stay.
UNKNOWN = ("unreachable", "replaced")


@dataclass(frozen=True)
class Upload:
    """A picture that was sent and decoded."""

    data: bytes
    """Its file."""
    extension: str
    """Of the file's name, without a dot."""
    pixels: torch.Tensor
    """As the encoder takes it, of shape (S, S, 3)."""


class Writer:
    """The changes of a gallery. What it returns is on the disk. Used from one event loop.

    Args:
        store: Where the gallery is kept.
        model: The thread that the model runs in.
        threads: Threads for files.
        lag_s: Seconds after which every replica knows of a change.
    """

    def __init__(
        self,
        store: GalleryStore,
        model: ThreadPoolExecutor,
        threads: ThreadPoolExecutor,
        lag_s: float,
    ) -> None:
        self._store, self._threads, self._lag_s = store, threads, lag_s
        self._commits = Batcher(self._commit, most=COMMITTED)
        self._features = Batcher(self._encode, most=ENCODED, thread=model)

    @property
    def keeps_pictures(self) -> bool:
        """Whether the store has a folder for pictures."""
        return self._store.pictures is not None

    async def put(
        self,
        image_id: str,
        searcher: Searcher,
        *,
        categories: Sequence[str],
        attributes: dict[str, str],
        upload: Upload | None,
        feature: NDArray[np.float32] | None,
    ) -> Done:
        """Add an image, or replace the one of that id.

        Args:
            image_id: The id.
            searcher: What encodes the picture.
            categories: The image's categories.
            attributes: The image's attributes.
            upload: Its picture; None where there is a feature alone.
            feature: Its feature (D,) by the searcher's encoder; None has the picture encoded.

        Raises:
            GalleryError: Nothing has changed, unless its reason is one of UNKNOWN: then nobody
                knows.
        """
        if feature is None:
            assert upload is not None, "a picture or a feature"
            with tracing.span("encode"):
                feature = await self._features((searcher, upload.pixels))
        path, pictures = None, self._store.pictures
        if upload is not None and pictures is not None:
            path = await run_in_thread(
                self._threads, lambda: pictures.add(upload.data, upload.extension)
            )
        change = Put(image_id, feature, tuple(categories), attributes, path)
        try:
            done = await self._committed(change, searcher)
        except RaycdError as error:
            if not (isinstance(error, GalleryError) and error.reason in UNKNOWN):
                self._forget(path)
            raise
        self._forget(done.old_path)
        return done

    async def delete(self, image_id: str, searcher: Searcher) -> Done:
        """Remove an image, if there is one. Raises GalleryError as `put` does."""
        done = await self._committed(Delete(image_id), searcher)
        self._forget(done.old_path)
        return done

    async def _committed(self, change: Change, searcher: Searcher) -> Done:
        fingerprint = searcher.bundle.manifest.encoder.fingerprint
        with tracing.span("database", {"db.system.name": self._store.gallery_db.system}):
            return await self._commits((change, fingerprint))

    def _forget(self, path: str | None) -> None:
        # The picture goes once every replica knows that its image has. One that stays because the
        # service ended before does no harm: nothing names it any more.
        if path is not None and self._store.pictures is not None:
            asyncio.get_running_loop().call_later(
                2 * self._lag_s, self._threads.submit, self._remove, path
            )

    def _remove(self, path: str) -> None:
        try:
            if self._store.pictures is not None:
                self._store.pictures.remove(path)
        except GalleryError as error:
            _log.warning(
                "a picture that nothing names any more could not be removed (%s)", error.reason
            )

    def _commit(self, batch: Sequence[tuple[Change, str]]) -> list[Done | Exception]:
        # One transaction, or one for each encoder while the model changes: each succeeds or fails
        # by itself.
        outcomes: list[Done | Exception] = []
        for fingerprint, some in groupby(batch, key=lambda one: one[1]):
            changes = [change for change, _ in some]
            try:
                outcomes += self._store.gallery_db.write(changes, fingerprint)
            except RaycdError as error:
                outcomes += [error] * len(changes)
        return outcomes

    @staticmethod
    def _encode(
        batch: Sequence[tuple[Searcher, torch.Tensor]],
    ) -> list[NDArray[np.float32] | Exception]:
        return each(batch, lambda searcher, pixels: list(searcher.encode_images(pixels)))
