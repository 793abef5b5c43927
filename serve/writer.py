"""Writes to the live gallery: pictures are encoded together, and changes committed together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from raycd.errors import GalleryError, RaycdError
from raycd.gallery.records import Change, Delete, Done, Put
from serve.batching import Batcher
from serve.engine import Engine
from serve.store import Store

if TYPE_CHECKING:
    from serve.service import SearchService

_log = logging.getLogger("ray.serve")

COMMITTED = 1000  # changes of one transaction, at most
UNKNOWN = (
    "unreachable",
    "replaced",
)  # reasons after which the change may be there, with its picture
ENCODED = 16  # pictures that are encoded at once: searches wait that long


@dataclass(frozen=True)
class Picture:
    """A picture that was decoded: its file, the extension that belongs to it, and its pixels (S, S,
    3).
    """

    data: bytes
    extension: str
    pixels: torch.Tensor


class Writer:
    """Used from one event loop. What it returns is on the disk."""

    def __init__(self, service: SearchService, store: Store, model: ThreadPoolExecutor) -> None:
        self._service, self._store = service, store
        self._commits = Batcher(self._commit, most=COMMITTED)
        self._features = Batcher(self._encode, most=ENCODED, thread=model)

    @property
    def keeps_pictures(self) -> bool:
        """Whether there is a place for them."""
        return self._store.pictures is not None

    async def put(
        self,
        image_id: str,
        engine: Engine,
        *,
        categories: Sequence[str],
        attributes: dict[str, str],
        picture: Picture | None,
        feature: NDArray[np.float32] | None,
    ) -> Done:
        """Add an image or put it in the place of another. It has a picture, a feature of the
        engine's encoder, or both.

        Raises GalleryError; then nothing has changed, unless its reason is one of UNKNOWN: then
        nobody knows.
        """
        if feature is None:
            assert picture is not None, "a picture or a feature"
            feature = await self._features((engine, picture.pixels))
        path, pictures = None, self._store.pictures
        if picture is not None and pictures is not None:
            path = await self._service.aside(lambda: pictures.add(picture.data, picture.extension))
        change = Put(image_id, feature, tuple(categories), attributes, path)
        try:
            done = await self._committed(change, engine)
        except RaycdError as error:
            if not (isinstance(error, GalleryError) and error.reason in UNKNOWN):
                self._forget(path)
            raise
        self._forget(done.old_path)
        return done

    async def delete(self, image_id: str, engine: Engine) -> Done:
        """Remove an image, if there is one. Raises GalleryError as `put` does."""
        done = await self._committed(Delete(image_id), engine)
        self._forget(done.old_path)
        return done

    async def _committed(self, change: Change, engine: Engine) -> Done:
        outcome = await self._commits((change, engine.fingerprint))
        if isinstance(outcome, RaycdError):
            raise outcome
        return outcome

    def _forget(self, path: str | None) -> None:
        """Remove the picture of an image that has gone, once every replica knows that it has.

        One that stays behind because the service ended before does no harm: nothing names it any
        more.
        """
        if path is not None and self._store.pictures is not None:
            lag_s = self._service.args.lag_s
            asyncio.get_running_loop().call_later(
                2 * lag_s, self._service.threads.submit, self._remove, path
            )

    def _remove(self, path: str) -> None:
        try:
            if self._store.pictures is not None:
                self._store.pictures.remove(path)
        except GalleryError as error:
            _log.warning(
                "a picture that nothing names any more could not be removed (%s)", error.reason
            )

    def _commit(self, batch: Sequence[tuple[Change, str]]) -> list[Done | RaycdError]:
        """One transaction, or one for each encoder while the model changes: each succeeds or fails
        by itself.
        """
        outcomes: list[Done | RaycdError] = []
        for fingerprint, some in groupby(batch, key=lambda one: one[1]):
            changes = [change for change, _ in some]
            try:
                outcomes += self._store.gallery_db.write(changes, fingerprint)
            except RaycdError as error:
                outcomes += [error] * len(changes)
        return outcomes

    @staticmethod
    def _encode(batch: Sequence[tuple[Engine, torch.Tensor]]) -> list[NDArray[np.float32]]:
        features: list[NDArray[np.float32]] = []
        for engine, some in groupby(batch, key=lambda one: one[0]):
            features += list(engine.searcher.encode_images([pixels for _, pixels in some]))
        return features
