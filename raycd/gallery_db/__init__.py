"""The durable gallery: every image that can be found, in a database. What is searched is made of
it.

    with GalleryDatabase.open("gallery.sqlite") as gallery_db:
        gallery_db.write([Put("DV1", feature_D, ("dress",))], fingerprint)
        gallery_db.changes(since=0, fingerprint=fingerprint)

Every change has a version, one more than the change before. Versions are given out under the lock
of one row, which is held until the commit: whoever sees a version sees all changes up to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, Select, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from raycd.errors import GalleryError
from raycd.gallery.static import SCHEMA
from raycd.gallery_db import codec, database, faults, plan, schema
from raycd.gallery_db.records import Change, Changes, Contents, Done, Put, Row, Seed
from raycd.gallery_db.tables import STATE, encoders, features, gallery, images
from raycd.gallery_db.watch import Watch

BUSY_S = 10.0  # that a write waits for another's
_CHUNK = 5000  # ids or rows of one statement
_STREAMED = 2000  # rows that are fetched at a time

Item = TypeVar("Item")


class GalleryDatabase:
    """A database that is open. Threads may share it; processes open their own.

    Every method raises GalleryError where the database does not answer, cannot be read or
    written, or is full; then nothing has changed. Only where a connection broke during a write
    (reason unreachable) or a SQLite file was removed or replaced during it (reason replaced),
    nobody knows.

    Attributes:
        url: Where it is, without a password.
    """

    def __init__(self, engine: Engine, url: str, watch: Watch | None) -> None:
        self.url = url
        self._watch = watch  # of a SQLite file
        self._engine, self._writing = engine, database.writing(engine)
        self._insert: Any = (postgresql if engine.dialect.name == "postgresql" else sqlite).insert

    @classmethod
    def open(cls, url: str, *, migrate: bool = True, busy_s: float = BUSY_S) -> Self:
        """The gallery database at a SQLite file or a postgresql:// URL, created and brought to this
        version's schema.

        Args:
            migrate: False: the schema must be this version's already.
            busy_s: Seconds that a write waits for another's.
        """
        address = database.address(url)
        shown = database.shown(url)
        with faults.told("opening the gallery's database", shown):
            engine = database.engine(address, busy_s=busy_s)
            watch = (
                Watch(engine, Path(address.database or ""))
                if engine.dialect.name == "sqlite"
                else None
            )
            try:
                if migrate:
                    schema.upgrade(engine)
                else:
                    schema.check(engine)
            except BaseException:
                _close(engine, watch)
                raise
        return cls(engine, shown, watch)

    def close(self) -> None:
        """Close the connections."""
        _close(self._engine, self._watch)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def check_file(self) -> None:
        """Raises GalleryError where the SQLite file is gone, or not the one that was opened.
        PostgreSQL has none.
        """
        if self._watch is not None:
            self.version()

    @contextmanager
    def _transaction(self, what: str) -> Iterator[Connection]:
        """One that writes: all of it is on the disk after the block, in the file that others would
        open, too.
        """
        with faults.told(what, self.url), self._writing.connect() as connection:
            with connection.begin():
                yield connection
            if self._watch is not None:
                self._watch.check(connection)

    def version(self) -> int:
        """Of the last change; 0: none yet."""
        with faults.told("reading the gallery", self.url), self._engine.connect() as connection:
            return int(connection.execute(select(gallery.c.version)).scalar_one())

    def seed(self) -> Seed | None:
        """The bundle's gallery that it began with; None: it was never begun, or written to before
        it was.
        """
        with faults.told("reading the gallery", self.url), self._engine.connect() as connection:
            return _seed(connection)

    def begin(self, table: pa.Table, fingerprint: str, digest: str) -> Seed | None:
        """Take over a bundle's gallery, features included, if there was never anything here; then
        its seed.

        One transaction: it is all here, or nothing. Processes that do it at once do it once.
        `table` is a `bundle.gallery_table`, `digest` tells its file from others.
        """
        with self._transaction("copying the bundle's gallery") as connection:
            if _locked_version(connection) == 0 and _seed(connection) is None:
                version = self._copy(connection, table, fingerprint)
                values = {"version": version, "seed_digest": digest, "seed_version": version}
                connection.execute(update(gallery).where(gallery.c.id == STATE).values(values))
            return _seed(connection)

    def _copy(self, connection: Connection, table: pa.Table, fingerprint: str) -> int:
        """All images of an Arrow table; returns the version of the last."""
        version = 0
        if len(table):
            self._check_dim(connection, fingerprint, table["feature"].type.list_size)
        for batch in table.to_batches(max_chunksize=_CHUNK):
            known = batch.select(SCHEMA.names).to_pylist()
            features_ND = (
                batch["feature"].flatten().to_numpy(zero_copy_only=False).reshape(len(batch), -1)
            )
            connection.execute(
                images.insert(),
                [
                    codec.image(
                        row["image_id"],
                        number,
                        row["categories"] or (),
                        row["attributes"] or {},
                        row["path"],
                    )
                    for number, row in enumerate(known, start=version + 1)
                ],
            )
            rows = zip(known, features_ND, strict=True)
            connection.execute(
                features.insert(),
                [codec.feature(fingerprint, row["image_id"], one) for row, one in rows],
            )
            version += len(batch)
        return version

    def write(self, changes: Sequence[Change], fingerprint: str) -> list[Done]:
        """Make changes in their order, all or none. The features of what is put are of the encoder
        of this fingerprint.

        Of changes of one image the last one stays; each has its version. Features that other
        encoders have given to an image that is replaced go with it.
        """
        if not changes:
            return []
        with self._transaction("writing to the gallery") as connection:
            dims = {_dim(change.feature) for change in changes if isinstance(change, Put)}
            version = _locked_version(connection)
            for dim in dims:
                self._check_dim(connection, fingerprint, dim)
            planned = plan.changes(
                changes, version, self._known(connection, {change.image_id for change in changes})
            )
            self._store(connection, planned, fingerprint)
            connection.execute(
                update(gallery).where(gallery.c.id == STATE).values(version=planned.version)
            )
        return planned.done

    def _known(self, connection: Connection, image_ids: set[str]) -> dict[str, str | None]:
        """The images of these ids that are there, with the paths of their pictures."""
        found: dict[str, str | None] = {}
        for some in _chunks(sorted(image_ids)):
            wanted = select(images.c.image_id, images.c.path).where(
                images.c.image_id.in_(some), ~images.c.deleted
            )
            found.update((image_id, path) for image_id, path in connection.execute(wanted))
        return found

    def _store(self, connection: Connection, planned: plan.Planned, fingerprint: str) -> None:
        for some in _chunks(sorted(planned.replaced)):
            connection.execute(delete(features).where(features.c.image_id.in_(some)))
        rows = [codec.tombstone(image_id, version) for image_id, version in planned.deleted.items()]
        rows += [
            codec.image(put.image_id, version, put.categories, put.attributes, put.path)
            for put, version in planned.put
        ]
        if rows:
            insert = self._insert(images)
            replaced = {
                column.name: insert.excluded[column.name]
                for column in images.c
                if not column.primary_key
            }
            connection.execute(
                insert.on_conflict_do_update(index_elements=["image_id"], set_=replaced), rows
            )
        given = [codec.feature(fingerprint, put.image_id, put.feature) for put, _ in planned.put]
        if given:
            connection.execute(features.insert(), given)

    def changes(self, since: int, fingerprint: str) -> Changes:
        """The last state of every image that was changed after a version, with its feature of this
        encoder.

        The version that is read before the rows is safe: all up to it is among them, and what is
        newer is only more.
        """
        with faults.told("reading the gallery", self.url), self._engine.connect() as connection:
            version = int(connection.execute(select(gallery.c.version)).scalar_one())
            wanted = _rows(fingerprint).where(images.c.version > since).order_by(images.c.version)
            rows = [codec.row(found) for found in connection.execute(wanted)]
        return Changes(max([version, since, *(row.version for row in rows)]), rows)

    def load(self, fingerprint: str) -> Contents:
        """All images, with their features of this encoder."""
        with faults.told("reading the gallery", self.url), self._engine.connect() as connection:
            version = int(connection.execute(select(gallery.c.version)).scalar_one())
            size = _count(connection)
            dim = (
                connection.execute(
                    select(encoders.c.dim).where(encoders.c.fingerprint == fingerprint)
                ).scalar()
                or 0
            )
            wanted = _rows(fingerprint).where(~images.c.deleted).order_by(images.c.version)
            found = connection.execution_options(yield_per=_STREAMED).execute(wanted)
            table, features_GD, unencoded, newest = codec.contents(found.partitions(), size, dim)
        return Contents(max(version, newest), table, features_GD, unencoded)

    def unencoded(self, fingerprint: str, *, limit: int = 1000, after: int = 0) -> list[Row]:
        """Images without a feature of this encoder, of versions above `after`, in the order of
        their versions.
        """
        missing = features.c.feature.is_(None)
        wanted = _rows(fingerprint).where(~images.c.deleted, missing, images.c.version > after)
        with faults.told("reading the gallery", self.url), self._engine.connect() as connection:
            return [
                codec.row(found)
                for found in connection.execute(wanted.order_by(images.c.version).limit(limit))
            ]

    def add_features(
        self, fingerprint: str, given: Sequence[tuple[str, int, NDArray[np.float32]]]
    ) -> int:
        """Store features (D,) of images (id, version, feature), where an image still has that
        version and none yet.

        Returns how many were stored. The gallery database's version stays: for its encoder, such an
        image was not there.
        """
        if not given:
            return 0
        with self._transaction("writing to the gallery") as connection:
            _locked_version(connection)
            for dim in {_dim(feature_D) for _, _, feature_D in given}:
                self._check_dim(connection, fingerprint, dim)
            wanting: set[tuple[str, int]] = set()
            for some in _chunks([image_id for image_id, _, _ in given]):
                wanted = _rows(fingerprint).where(images.c.image_id.in_(some), ~images.c.deleted)
                found = connection.execute(wanted)
                wanting.update((one.image_id, one.version) for one in found if one.feature is None)
            rows = [
                codec.feature(fingerprint, image_id, feature_D)
                for image_id, version, feature_D in given
                if (image_id, version) in wanting
            ]
            if rows:
                connection.execute(features.insert(), rows)
            return len(rows)

    def encoders(self) -> dict[str, int]:
        """The images that each encoder has given a feature, by its fingerprint."""
        wanted = select(features.c.fingerprint, func.count()).group_by(features.c.fingerprint)
        with faults.told("reading the gallery", self.url), self._engine.connect() as connection:
            return {fingerprint: int(size) for fingerprint, size in connection.execute(wanted)}

    def forget(self, fingerprint: str) -> int:
        """Remove all features of an encoder; returns how many there were."""
        with self._transaction("writing to the gallery") as connection:
            _locked_version(connection)
            gone = connection.execute(delete(features).where(features.c.fingerprint == fingerprint))
            connection.execute(delete(encoders).where(encoders.c.fingerprint == fingerprint))
            return gone.rowcount

    def count(self) -> int:
        """The images that are there."""
        with faults.told("reading the gallery", self.url), self._engine.connect() as connection:
            return _count(connection)

    def _check_dim(self, connection: Connection, fingerprint: str, dim: int) -> None:
        """All features of an encoder are of one size: the first tells which."""
        known = connection.execute(
            select(encoders.c.dim).where(encoders.c.fingerprint == fingerprint)
        ).scalar()
        if known is None:
            connection.execute(encoders.insert(), {"fingerprint": fingerprint, "dim": dim})
        elif known != dim:
            raise GalleryError(
                "a feature is of another size than this encoder's others",
                "mismatch",
                got=dim,
                expected=known,
            )


def _close(engine: Engine, watch: Watch | None) -> None:
    engine.dispose()
    if watch is not None:
        watch.close()


def _locked_version(connection: Connection) -> int:
    """The gallery database's version, which nobody else changes before this transaction ends."""
    return int(connection.execute(select(gallery.c.version).with_for_update()).scalar_one())


def _seed(connection: Connection) -> Seed | None:
    digest, version = connection.execute(
        select(gallery.c.seed_digest, gallery.c.seed_version)
    ).one()
    return None if digest is None else Seed(digest, version)


def _rows(fingerprint: str) -> Select[Any]:
    """What `codec.row` reads, of all images."""
    theirs = (features.c.image_id == images.c.image_id) & (features.c.fingerprint == fingerprint)
    return select(images, features.c.feature).select_from(images.outerjoin(features, theirs))


def _count(connection: Connection) -> int:
    """The images that are there."""
    return int(
        connection.execute(
            select(func.count()).select_from(images).where(~images.c.deleted)
        ).scalar_one()
    )


def _dim(feature_D: NDArray[np.float32]) -> int:
    if feature_D.ndim != 1:
        raise GalleryError(
            "a feature is no vector",
            "mismatch",
            got=f"shape {feature_D.shape}",
            expected="shape (D,)",
        )
    return len(feature_D)


def _chunks(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    return (items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK))
