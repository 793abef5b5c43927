"""Images of the gallery that a replica's encoder has not encoded yet."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from raycd.data.images import BrokenImage
from raycd.errors import GalleryError, called
from raycd.gallery.records import Row
from raycd.search.searcher import Searcher
from serve.args import ServeArgs
from serve.live.store import GalleryStore

_log = logging.getLogger("raycd")

ENCODED = 1000  # images that a replica encodes itself before it answers; more are a job's work
TOGETHER = 32  # images that are encoded at once, between queries
PATIENCE_S = 2.0  # that pictures whose store fails may take in all: the gallery is to be followed
AGAIN_S = 60.0  # after which those are read again


class Unencoded:
    """What encodes them.

    Args:
        searcher: Its bundle's encoder is the one.
        store: Where the gallery is kept.
        model: The thread that the model runs in.
        args: The limits of images.
    """

    def __init__(
        self, searcher: Searcher, store: GalleryStore, model: ThreadPoolExecutor, args: ServeArgs
    ) -> None:
        self._searcher, self._store, self._model, self._args = searcher, store, model, args
        self._fingerprint = searcher.bundle.manifest.encoder.fingerprint
        self._waiting: dict[str, Row] = {}  # for the stores of their pictures
        self._next_retry = time.monotonic() + AGAIN_S

    def check_few(self, rows: Sequence[Row]) -> None:
        """Raise GalleryError where more than ENCODED images have no feature."""
        missing = sum(row.feature is None and not row.deleted for row in rows)
        if missing > ENCODED:
            raise GalleryError(
                "the gallery's images are not encoded by this bundle's encoder",
                "mismatch",
                got=f"more without features of encoder {self._fingerprint[:12]} than the "
                f"{ENCODED:,} that the service encodes itself",
                do=f"run {called('jobs/index.py')} with this --bundle and --gallery first; "
                "the running service goes on meanwhile",
            )

    def encoded(self, rows: Sequence[Row]) -> list[Row]:
        """Return rows with features of this encoder, which are stored.

        Those whose pictures cannot be read stay without. So do those whose stores fail, for now:
        `retry` reads them again.
        """
        missing = [row for row in rows if row.feature is None and not row.deleted]
        for row in rows:  # it may have changed
            self._waiting.pop(row.image_id, None)
        features: dict[str, NDArray[np.float32]] = {}
        for found in self._features(missing):
            self._store.gallery_db.add_features(self._fingerprint, found)
            features |= {image_id: feature_D for image_id, _, feature_D in found}
        return [replace(row, feature=features.get(row.image_id, row.feature)) for row in rows]

    def put_off(self, rows: Sequence[Row]) -> None:
        """Have `retry` read the pictures of these images."""
        self._waiting |= {row.image_id: row for row in rows}

    def retry(self) -> None:
        """Encode images whose pictures could not be had, and have them followed as changes.

        Some of them at a time, and where none can be had, not before AGAIN_S.
        """
        if not self._waiting or time.monotonic() < self._next_retry:
            return
        waiting = list(self._waiting.values())
        # Any of them: one whose store never answers is not to hold up the others
        rows = random.sample(waiting, min(TOGETHER, len(waiting)))
        for row in rows:
            self._waiting.pop(row.image_id, None)
        self._next_retry = time.monotonic() + AGAIN_S
        try:
            found = [one for some in self._features(rows) for one in some]
            self._store.gallery_db.add_features(self._fingerprint, found, late=True)
        except GalleryError as error:  # the gallery is followed nevertheless
            self.put_off(rows)
            _log.warning("%d images cannot be encoded yet: %s", len(self._waiting), error)
            return
        if found or not any(row.image_id in self._waiting for row in rows):
            self._next_retry = time.monotonic()

    def _features(
        self, missing: Sequence[Row]
    ) -> Iterator[list[tuple[str, int, NDArray[np.float32]]]]:
        """Yield ids, versions and features of the images whose pictures can be read."""
        readable = self._readable(missing)
        while some := list(islice(readable, TOGETHER)):
            features_ND = self._model.submit(
                self._searcher.encode_images, [pixels for _, pixels in some]
            ).result()
            yield [
                (row.image_id, row.version, feature_D)
                for (row, _), feature_D in zip(some, features_ND, strict=True)
            ]

    def _readable(self, rows: Sequence[Row]) -> Iterator[tuple[Row, torch.Tensor]]:
        """Yield the images whose pictures can be read, with their pixels."""
        lost_s = 0.0
        for number, row in enumerate(rows):
            began = time.monotonic()
            try:
                image = self._store.image(
                    row.path, max_pixels=self._args.max_pixels, enough=self._searcher.enough
                )
            except BrokenImage:
                continue
            except GalleryError:  # says nothing about the picture
                self.put_off([row])
                lost_s += time.monotonic() - began
                if lost_s > PATIENCE_S:
                    self.put_off(rows[number + 1 :])
                    return
                continue
            yield row, self._searcher.preprocess(image)
