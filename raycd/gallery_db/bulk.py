"""Many images at once, from Arrow into the tables: no object is made for each number or setting.

Shapes: N images, D feature size.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
from sqlalchemy import Connection, Table, delete

from raycd.gallery_db import tables
from raycd.gallery_db.tables import FLOAT, features, images

# Of SQLite. Ids change pages all over an index: 32 MiB of the log are copied back at a time
_PRAGMAS = ("cache_size = -65536", "wal_autocheckpoint = 4096")


class Tally(NamedTuple):
    """What an import did with images."""

    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    """They were in the gallery already, as they are in the import."""

    def plus(self, other: Tally) -> Tally:
        """Return the sums."""
        return Tally(*map(sum, zip(self, other, strict=True)))

    @property
    def changed(self) -> int:
        """The number of images that were written."""
        return self.added + self.replaced


@dataclass(frozen=True)
class BatchColumns:
    """The images of a batch as the tables have them, column by column.

    What is None of an image is not said: it stays as it was.
    """

    image_ids: list[str]
    categories: list[str | None]
    attributes: list[str | None]
    paths: list[str | None]
    features: list[bytes]
    dim: int
    """D."""
    new: str = "[]"
    """The categories of a new image of which none are said."""

    @classmethod
    def of(cls, batch: pa.RecordBatch, new: Sequence[str] = ()) -> Self:
        """Return those of a batch of `gallery.static.SCHEMA` and feature (N, D)."""
        flat = batch["feature"].flatten().to_numpy(zero_copy_only=False)
        size = batch["feature"].type.list_size
        feature_ND = np.ascontiguousarray(flat.reshape(-1, size), FLOAT)
        return cls(
            batch["image_id"].to_pylist(),
            [None if one is None else _list(tuple(one)) for one in batch["categories"].to_pylist()],
            [
                None if one is None else _object(tuple(one))
                for one in batch["attributes"].to_pylist()
            ],
            batch["path"].to_pylist(),
            feature_ND.view(f"V{feature_ND.itemsize * size}")[:, 0].tolist(),
            size,
            _list(tuple(new)),
        )

    def insert(
        self,
        connection: Connection,
        numbers: Iterable[int],
        version: int,
        fingerprint: str,
        there: Mapping[str, Any] = MappingProxyType({}),
        measured_before: Container[int] = (),
    ) -> None:
        """Insert the images of these numbers as changes after `version`.

        Their rows are not in the tables; `there` has those that were. Those `measured_before` have
        their features.
        """
        known, measured = list[tuple[Any, ...]](), list[tuple[Any, ...]]()
        for number in numbers:
            version += 1
            image_id = self.image_ids[number]
            known.append((image_id, version, False, *self._labels(number, there.get(image_id))))
            if number not in measured_before:
                measured.append((image_id, fingerprint, self.features[number]))
        _insert(connection, images, known)
        _insert(connection, features, measured)

    def write(self, connection: Connection, version: int, fingerprint: str) -> Tally:
        """Write the images that are not there as they are here, as changes after `version`.

        An image keeps the features of other encoders where its picture is the same for sure: by its
        path and its feature of this encoder, or where nothing but that feature is new.
        """
        if connection.dialect.name == "sqlite":
            for pragma in _PRAGMAS:
                connection.exec_driver_sql(f"PRAGMA {pragma}")
        there = self._there(connection, fingerprint)
        changed, known, stale, replaced = list[int](), list[str](), list[str](), 0
        measured_before = set[int]()
        for number, image_id in enumerate(self.image_ids):
            found = there.get(image_id)
            if found is not None:
                labels, path = self._labels(number, found), found.path
                same = not found.deleted and labels == (found.categories, found.attributes, path)
                is_measured = not found.deleted and found.feature == self.features[number]
                if same and is_measured:
                    continue
                replaced += not found.deleted
                known.append(image_id)
                if is_measured and labels[-1] == path:
                    measured_before.add(number)
                elif not (same and found.feature is None):
                    stale.append(image_id)
            changed.append(number)
        for some in tables.chunks(known):
            connection.execute(delete(images).where(images.c.image_id.in_(some)))
        for some in tables.chunks(stale):
            connection.execute(delete(features).where(features.c.image_id.in_(some)))
        self.insert(connection, changed, version, fingerprint, there, measured_before)
        return Tally(len(changed) - replaced, replaced, len(self.image_ids) - len(changed))

    def _there(self, connection: Connection, fingerprint: str) -> dict[str, Any]:
        """Return the rows of those images that are known already, or were removed, by their ids."""
        signs = _signs(connection, len(self.image_ids))
        found = connection.exec_driver_sql(
            "SELECT i.image_id, i.deleted, i.categories, i.attributes, i.path, f.feature "
            f"FROM {images.name} i LEFT JOIN {features.name} f "
            f"ON f.image_id = i.image_id AND f.fingerprint = {_signs(connection, 1)} "
            f"WHERE i.image_id IN ({signs})",
            (fingerprint, *self.image_ids),
        )
        return {row.image_id: row for row in found}

    def _labels(self, number: int, found: Any) -> tuple[str, str, str | None]:
        """Return categories, attributes and path of an image; `found` is its row until now."""
        is_new = found is None or found.deleted
        categories, attributes, path = (
            (self.new, "{}", None) if is_new else (found.categories, found.attributes, found.path)
        )
        return (
            self.categories[number] or categories,
            self.attributes[number] or attributes,
            self.paths[number] or path,
        )


def _insert(connection: Connection, table: Table, rows: list[tuple[Any, ...]]) -> None:
    """Insert rows by the driver itself: SQLAlchemy would take twice the time for their values."""
    if rows:
        names = ", ".join(column.name for column in table.columns)
        signs = _signs(connection, len(table.columns))
        connection.exec_driver_sql(f"INSERT INTO {table.name} ({names}) VALUES ({signs})", rows)


def _signs(connection: Connection, count: int) -> str:
    return ", ".join(["?" if connection.dialect.name == "sqlite" else "%s"] * count)


@lru_cache(4096)
def _list(names: tuple[str, ...]) -> str:
    return tables.as_json(list(dict.fromkeys(names)))


@lru_cache(4096)
def _object(pairs: tuple[tuple[str, str], ...]) -> str:
    return tables.as_json(dict(pairs))
