"""The tables of the gallery database, as the migrations make them, their rows, and plans of writes.

The tables may share a database with others, so every name begins with raycd_.

Shapes: G images, D feature size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

from raycd.gallery.records import Change, Done, Put, Row
from raycd.gallery.static import SCHEMA

FLOAT = np.dtype("<f4")  # of stored features, on every machine
CHUNK = 5000  # ids or rows of one statement

Item = TypeVar("Item")

metadata = MetaData()

STATE = 1  # id of the one row of raycd_gallery

gallery = Table(
    "raycd_gallery",
    metadata,
    Column("id", Integer, primary_key=True),
    # Of the last change. Every writer holds the lock of this row until it commits.
    Column("version", BigInteger, nullable=False),
    Column("seed_digest", String(64)),  # see `records.Seed`
    Column("seed_version", BigInteger),
    Column("uid", String(32)),  # a random name, which a restored copy does not keep
)

leases = Table(
    "raycd_leases",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("holder", Text, nullable=False),
    Column("until", Float, nullable=False),  # seconds, by the database's clock
)

encoders = Table(
    "raycd_encoders",
    metadata,
    Column("fingerprint", String(64), primary_key=True),
    Column("dim", Integer, nullable=False),  # of all its features
)

images = Table(
    "raycd_images",
    metadata,
    Column("image_id", Text, primary_key=True),
    Column("version", BigInteger, nullable=False, unique=True),  # of its last change
    Column("deleted", Boolean, nullable=False),  # a tombstone, so that replicas learn of it
    Column("categories", Text, nullable=False),  # JSON: a list
    Column("attributes", Text, nullable=False),  # JSON: an object
    Column("path", Text),  # of its picture: a path, a URI, or what `Pictures.add` returned
)

features = Table(
    "raycd_features",
    metadata,
    # The id comes first in the key: a replaced image's features of all encoders are looked up.
    Column("image_id", Text, primary_key=True),
    Column("fingerprint", String(64), primary_key=True),  # of the encoder
    Column("feature", LargeBinary, nullable=False),  # FLOAT, (D,)
)

searches = Table(
    "raycd_searches",
    metadata,
    Column("query_id", String(32), primary_key=True),
    Column("at", Float, nullable=False, index=True),  # seconds since 1970
    Column("reference", Text),  # image_id of the gallery; null: a picture was sent, or none
    Column("text", Text),
    Column("text_hash", String(64)),  # SHA-256
    Column("bundle", String(12), nullable=False),
    Column("first", Integer, nullable=False),  # results that were left out before
    Column("results", Text, nullable=False),  # JSON: a list of [image_id, relative score]
    Column("explored", Text),  # JSON: the positions that a coin swapped or left; null: none
)

events = Table(
    "raycd_events",
    metadata,
    Column("event_id", String(64), primary_key=True),
    Column("query_id", String(32), nullable=False),
    Column("at", Float, nullable=False, index=True),
    Column("action", String(16), nullable=False),
    Column("image_id", Text, nullable=False),
)


@dataclass(frozen=True)
class ChangePlan:
    """The rows after a list of changes, by what has to be done to them."""

    version: int
    """Version of the gallery database after the changes."""
    done: list[Done]
    """Result of each change."""
    put: list[tuple[Put, int]]
    """Images that are there afterwards, and their versions."""
    deleted: dict[str, int]
    """Ids of removed images, and the versions at which they were removed."""
    replaced: set[str]
    """Ids of images that were there before; their features are removed."""

    @classmethod
    def of(
        cls, changes: Sequence[Change], version: int, known: Mapping[str, str | None]
    ) -> ChangePlan:
        """Plan changes that follow `version`.

        Args:
            known: Id -> path of the picture, of those of the images that are there now.
        """
        paths, done = dict(known), []
        put: dict[str, tuple[Put, int]] = {}
        deleted: dict[str, int] = {}
        for change in changes:
            image_id = change.image_id
            existed = image_id in paths
            if isinstance(change, Put) or existed:
                version += 1
            done.append(Done(version, existed, paths.get(image_id)))
            if isinstance(change, Put):
                paths[image_id] = change.path
                put[image_id] = (change, version)
                deleted.pop(image_id, None)
            elif existed:
                del paths[image_id]
                put.pop(image_id, None)
                deleted[image_id] = version
        return cls(version, done, list(put.values()), deleted, set(known))


def image_row(
    image_id: str, version: int, categories: Sequence[str], attributes: Any, path: str | None
) -> dict[str, Any]:
    """Return a row of `images`; `attributes` is a mapping or pairs."""
    return {
        "image_id": image_id,
        "version": version,
        "deleted": False,
        "categories": as_json(list(categories)),
        "attributes": as_json(dict(attributes)),
        "path": path,
    }


def as_json(value: object) -> str:
    """Return a value as the tables have it: an import compares these texts."""
    return json.dumps(value, ensure_ascii=False)


def tombstone(image_id: str, version: int) -> dict[str, Any]:
    """Return the row of `images` of a deleted image."""
    return image_row(image_id, version, (), {}, None) | {"deleted": True}


def feature_row(fingerprint: str, image_id: str, feature_D: NDArray[np.float32]) -> dict[str, Any]:
    """Return a row of `features`."""
    return {
        "fingerprint": fingerprint,
        "image_id": image_id,
        "feature": np.asarray(feature_D, FLOAT).tobytes(),
    }


def read_row(found: Any) -> Row:
    """Return a selected image with its feature."""
    feature = found.feature
    return Row(
        found.image_id,
        int(found.version),
        bool(found.deleted),
        _categories(found.categories),
        _attributes(found.attributes),
        found.path,
        None if feature is None else np.frombuffer(feature, FLOAT).astype(np.float32),
    )


def chunks(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """Yield so many ids or rows as one statement takes."""
    return (items[start : start + CHUNK] for start in range(0, len(items), CHUNK))


Room = Callable[[tuple[int, int], type[np.float32]], NDArray[np.float32]]
"""What makes an array of a shape and a type: `numpy.empty`, or one in a file."""


def read_contents(
    parts: Iterable[Sequence[Any]],
    size: int,
    dim: int,
    room: Room = np.empty,
) -> tuple[pa.Table, NDArray[np.float32], list[Row], int]:
    """Read many selected images, of which `size` are expected, their features into `room`.

    Returns:
        A table of `gallery.static.SCHEMA`, its features (G, D), the images without a feature, and
        the newest version.
    """
    features_GD = room((size, dim), np.float32)
    batches: list[pa.RecordBatch] = []
    unencoded: list[Row] = []
    filled, newest = 0, 0
    for part in parts:
        newest = max(newest, part[-1].version)
        whole = [found for found in part if found.feature is not None]
        unencoded += [read_row(found) for found in part if found.feature is None]
        if filled + len(whole) > len(features_GD):  # images were added since they were counted
            wider_GD = room((filled + max(len(whole), len(features_GD) // 8), dim), np.float32)
            wider_GD[:filled] = features_GD[:filled]
            features_GD = wider_GD
        joined = np.frombuffer(b"".join([found.feature for found in whole]), FLOAT)
        features_GD[filled : filled + len(whole)] = joined.reshape(len(whole), dim)
        filled += len(whole)
        batches.append(_batch(whole))
    return pa.Table.from_batches(batches, SCHEMA), features_GD[:filled], unencoded, newest


def _batch(rows: Sequence[Any]) -> pa.RecordBatch:
    columns = [
        [row.image_id for row in rows],
        [_categories(row.categories) for row in rows],
        [row.path for row in rows],
        [list(_attributes(row.attributes).items()) for row in rows],
    ]
    arrays = [pa.array(values, field.type) for values, field in zip(columns, SCHEMA, strict=True)]
    return pa.record_batch(arrays, schema=SCHEMA)


@lru_cache(4096)
def _categories(text: str) -> tuple[str, ...]:
    return tuple(json.loads(text))


@lru_cache(4096)
def _attributes(text: str) -> Mapping[str, str]:
    found: Mapping[str, str] = json.loads(text)
    return found
