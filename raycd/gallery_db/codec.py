"""Between the rows of the tables and plain values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raycd.gallery.static import SCHEMA
from raycd.gallery_db.records import Row

_FLOAT = np.dtype("<f4")


def image(
    image_id: str, version: int, categories: Sequence[str], attributes: Any, path: str | None
) -> dict[str, Any]:
    """A row of the table of images; `attributes` is a mapping or pairs."""
    return {
        "image_id": image_id,
        "version": version,
        "deleted": False,
        "categories": json.dumps(list(categories), ensure_ascii=False),
        "attributes": json.dumps(dict(attributes), ensure_ascii=False),
        "path": path,
    }


def tombstone(image_id: str, version: int) -> dict[str, Any]:
    """The row of an image that has gone."""
    return image(image_id, version, (), {}, None) | {"deleted": True}


def feature(fingerprint: str, image_id: str, feature_D: NDArray[np.float32]) -> dict[str, Any]:
    """A row of the table of features."""
    return {
        "fingerprint": fingerprint,
        "image_id": image_id,
        "feature": np.asarray(feature_D, _FLOAT).tobytes(),
    }


def row(found: Any) -> Row:
    """An image with its feature, as they were selected."""
    return Row(
        found.image_id,
        int(found.version),
        bool(found.deleted),
        _categories(found.categories),
        _attributes(found.attributes),
        found.path,
        None if found.feature is None else np.frombuffer(found.feature, _FLOAT).astype(np.float32),
    )


def contents(
    parts: Iterable[Sequence[Any]], size: int, dim: int
) -> tuple[pa.Table, NDArray[np.float32], list[Row], int]:
    """Many images: a table of `gallery.SCHEMA`, their features (G, D), those without one, and the
    newest version.

    `size` is how many images are expected.
    """
    features_GD = np.empty((size, dim), np.float32)
    batches: list[pa.RecordBatch] = []
    unencoded: list[Row] = []
    filled, newest = 0, 0
    for part in parts:
        newest = max(newest, part[-1].version)
        whole = [one for one in part if one.feature is not None]
        unencoded += [row(one) for one in part if one.feature is None]
        if filled + len(whole) > len(
            features_GD
        ):  # others were faster: images that came since they were counted
            more = np.empty((max(len(whole), len(features_GD) // 8), dim), np.float32)
            features_GD = np.concatenate([features_GD, more])
        joined = np.frombuffer(b"".join([one.feature for one in whole]), _FLOAT)
        features_GD[filled : filled + len(whole)] = joined.reshape(len(whole), dim)
        filled += len(whole)
        batches.append(_batch(whole))
    return pa.Table.from_batches(batches, SCHEMA), features_GD[:filled], unencoded, newest


def _batch(rows: Sequence[Any]) -> pa.RecordBatch:
    columns = [
        [one.image_id for one in rows],
        [_categories(one.categories) for one in rows],
        [one.path for one in rows],
        [list(_attributes(one.attributes).items()) for one in rows],
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
