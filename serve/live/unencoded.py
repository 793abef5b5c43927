"""Images of the gallery that a replica's encoder has not encoded yet."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from raycd.data import images
from raycd.errors import DataError, GalleryError, program
from raycd.gallery.records import Row
from raycd.search.searcher import Searcher
from serve.args import ServeArgs
from serve.live.store import GalleryStore

ENCODED = 1000  # images that a replica encodes itself before it answers; more are a job's work
TOGETHER = 32  # images that are encoded at once, between queries


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

    def check_few(self, rows: Sequence[Row]) -> None:
        """Raise GalleryError where more than ENCODED images have no feature."""
        missing = sum(row.feature is None and not row.deleted for row in rows)
        if missing > ENCODED:
            raise GalleryError(
                "the gallery's images are not encoded by this bundle's encoder",
                "mismatch",
                got=f"{missing} images without features of encoder {self._fingerprint[:12]}",
                expected=f"at most {ENCODED}, which the service encodes itself",
                do=f"run {program('jobs/index.py')} with this --bundle and --gallery first; "
                "the running service goes on meanwhile",
            )

    def encoded(self, rows: Sequence[Row]) -> list[Row]:
        """Return rows with features of this encoder, which are stored.

        Those whose pictures cannot be read stay without.
        """
        missing = [row for row in rows if row.feature is None and not row.deleted]
        features: dict[str, NDArray[np.float32]] = {}
        for start in range(0, len(missing), TOGETHER):
            readable = [
                (row, pixels)
                for row in missing[start : start + TOGETHER]
                if (pixels := self._pixels(row)) is not None
            ]
            if readable:
                features_ND = self._model.submit(
                    self._searcher.encode_images, [pixels for _, pixels in readable]
                ).result()
                found = [
                    (row.image_id, row.version, feature_D)
                    for (row, _), feature_D in zip(readable, features_ND, strict=True)
                ]
                self._store.gallery_db.add_features(self._fingerprint, found)
                features |= {image_id: feature_D for image_id, _, feature_D in found}
        return [replace(row, feature=features.get(row.image_id, row.feature)) for row in rows]

    def _pixels(self, row: Row) -> torch.Tensor | None:
        try:
            path = self._store.locate(row.path)
            image = images.load(
                path,
                max_pixels=self._args.max_pixels,
                min_side=1,
                patient=False,
                enough=self._searcher.enough,
            )
        except DataError:
            return None
        return self._searcher.preprocess(image)
