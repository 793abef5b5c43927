"""Re-encoding of a live gallery by another encoder, on Ray Data, while the service goes on.

Results go to the database: a job that was killed and is started again does only the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from raycd import bundle, features
from raycd.config import Config
from raycd.gallery.records import Row
from raycd.gallery_db import GalleryDatabase
from raycd.gallery_db.stored import StoredGallery
from raycd.model.encoder import Encoder
from raycd.runtime.embed import embedding

BATCHES = 32  # of each worker that are encoded before they are stored: what a killed job loses
STORED = 1000  # features of one transaction: the service's own writes wait for it
FEW = 256  # images added meanwhile that are left to the replicas, which encode them themselves


@dataclass(frozen=True)
class Reembedded:
    """What became of the images that the encoder had not encoded."""

    encoded: int
    broken: dict[str, str]
    """Image id -> why it cannot be encoded: an `images.Reason`."""


def reembed(stored: StoredGallery, encoder: Encoder, config: Config) -> Reembedded:
    """Encode every image of the gallery that the encoder has not encoded, also what is written
    meanwhile.

    Raises:
        DataError: A store of pictures cannot be reached.
        GalleryError: The database cannot be read or written.
    """
    gallery_db, fingerprint, config = stored.gallery_db, encoder.fingerprint(), _lenient(config)
    limit = BATCHES * config.embed.batch_size * config.compute.embed_workers
    encoded, after, broken = 0, 0, dict[str, str]()
    while rows := gallery_db.unencoded(fingerprint, limit=limit, after=after):
        table = embedding.embed_images(
            {row.image_id: stored.locate(row.path) for row in rows}, encoder, config
        )
        encoded += _store(gallery_db, fingerprint, rows, table)
        status = dict(zip(table["key"].to_pylist(), table["status"].to_pylist(), strict=True))
        broken |= {key: state for key, state in status.items() if state != features.READABLE}
        first, after = after == 0, rows[-1].version
        # Where the service writes all the time, there is always one more.
        if len(rows) < min(FEW, limit) and not first:
            break
    return Reembedded(encoded, _unchanged(gallery_db, fingerprint, broken))


def _lenient(config: Config) -> Config:
    """Return settings that accept every picture that the gallery has accepted."""
    return config.model_copy(update={"data": config.data.model_copy(update={"min_side": 1})})


def _store(
    gallery_db: GalleryDatabase, fingerprint: str, rows: Sequence[Row], table: pa.Table
) -> int:
    """Store features, but for images that have changed meanwhile; return how many were stored."""
    readable = [
        (row.image_id, row.version, feature_D)
        for row, status, feature_D in zip(
            rows, table["status"].to_pylist(), bundle.gallery_features(table), strict=True
        )
        if status == features.READABLE
    ]
    return sum(
        gallery_db.add_features(fingerprint, readable[start : start + STORED])
        for start in range(0, len(readable), STORED)
    )


def _unchanged(
    gallery_db: GalleryDatabase, fingerprint: str, broken: dict[str, str]
) -> dict[str, str]:
    """Return the broken images that were not removed or replaced while the job ran."""
    found, after = dict[str, str](), 0
    while broken and (rows := gallery_db.unencoded(fingerprint, after=after)):
        found |= {row.image_id: broken[row.image_id] for row in rows if row.image_id in broken}
        after = rows[-1].version
    return found
