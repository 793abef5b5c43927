"""The gallery database: every image that can be found, durably. What is searched is made from it.

    with GalleryDatabase.open("gallery.sqlite") as gallery_db:
        gallery_db.write([Put("DV1", feature_D, ("dress",))], fingerprint)
        gallery_db.changes(since=0, fingerprint=fingerprint)

Every change has a version, one more than the change before. Versions are assigned under the lock of
one row, which is held until the commit: a reader that sees a version sees all changes up to it.

Shapes: D feature size.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from raycd.errors import GalleryError
from raycd.gallery.records import Change, Changes, Contents, Done, Put, Row, Seed
from raycd.gallery_db import database, faults, schema, statements, tables
from raycd.gallery_db.bulk import BatchColumns, Tally
from raycd.gallery_db.tables import ChangePlan, encoders, features, gallery, images
from raycd.gallery_db.watch import FileWatch

BUSY_S = 10.0  # how long a write waits for another one
_FETCHED = 2000  # rows at a time


class GalleryDatabase:
    """An open database. Threads may share it; processes open their own.

    Every method raises GalleryError where the database does not answer, cannot be read or written,
    or is full; then nothing has changed. Only where a connection broke during a write (reason
    unreachable), or a SQLite file was removed or replaced during it (reason replaced), the write
    may or may not have happened.

    Attributes:
        url: Its address, without a password.
        system: sqlite or postgresql.
        insert: Makes statements of its dialect, which know conflicts.
    """

    def __init__(self, engine: Engine, url: str, watch: FileWatch | None) -> None:
        self.url, self.system = url, engine.dialect.name
        self._watch = watch  # of a SQLite file
        self._engine, self._writing = engine, database.writing(engine)
        self.insert: Any = (postgresql if self.system == "postgresql" else sqlite).insert

    @classmethod
    def open(
        cls, url: str, *, migrate: bool = True, create: bool = False, busy_s: float = BUSY_S
    ) -> Self:
        """Open the database at a SQLite file or a postgresql:// URL, created where it is absent.

        Args:
            migrate: Upgrade an older schema; False: raise GalleryError for one.
            create: Where `migrate` is False: yet make the tables where there are none.
            busy_s: Seconds that a write waits for another one.
        """
        address = database.address(url)
        shown = database.shown(url)
        with faults.translate_errors("opening the gallery's database", shown):
            engine = database.engine(address, busy_s=busy_s)
            is_sqlite = engine.dialect.name == "sqlite"
            watch = FileWatch(engine, Path(address.database or "")) if is_sqlite else None
            try:
                unmigrated = schema.create if create else schema.check
                (schema.upgrade if migrate else unmigrated)(engine)
            except BaseException:
                _close(engine, watch)
                raise
        return cls(engine, shown, watch)

    def close(self) -> None:
        """Close the connections."""
        _close(self._engine, self._watch)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def check_file(self) -> None:
        """Raise GalleryError where the SQLite file is gone, or is not the one that was opened."""
        if self._watch is not None:
            self.version()

    @contextmanager
    def transaction(self, what: str) -> Iterator[Connection]:
        """Open a transaction that writes; after the block all of it is on the disk.

        And it is in the file that others would open: a removed SQLite file raises no error itself.
        """
        with faults.translate_errors(what, self.url), self._writing.connect() as connection:
            with connection.begin():
                yield connection
            if self._watch is not None:
                self._watch.check(connection)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a transaction that reads."""
        with (
            faults.translate_errors("reading the gallery", self.url),
            self._engine.connect() as connection,
        ):
            yield connection

    def version(self) -> int:
        """Return the version of the last change; 0 before the first one."""
        with self.reading() as connection:
            return statements.version(connection)

    def seed(self) -> Seed | None:
        """Return the bundle's gallery that the database was filled with at first, if it was."""
        with self.reading() as connection:
            return statements.seed(connection)

    def begin(
        self, table: pa.Table | Iterable[pa.RecordBatch], fingerprint: str, digest: str
    ) -> Seed | None:
        """Copy a bundle's gallery, unless the database has ever had a change; return `seed()`.

        It is one transaction. Of processes that do it at once one does, and the others wait for it.

        Args:
            table: A `bundle.gallery_table` with features, or the parts of one.
            fingerprint: The encoder of its features.
            digest: SHA-256 of its file.
        """
        begun = False

        def parts() -> Iterator[pa.RecordBatch]:
            nonlocal begun
            begun = True
            in_parts = table.to_batches(tables.CHUNK) if isinstance(table, pa.Table) else table
            yield from in_parts

        until = time.monotonic() + database.STATEMENT_S
        while True:
            try:
                return self._begin(parts(), fingerprint, digest)
            except GalleryError as error:  # locked by another copy, or while this one was made
                if error.reason != "locked" or begun or time.monotonic() > until:
                    raise

    def _begin(self, parts: Iterable[pa.RecordBatch], fingerprint: str, digest: str) -> Seed | None:
        with self.transaction("copying the bundle's gallery") as connection:
            if statements.locked_version(connection) == 0 and statements.seed(connection) is None:
                version = self._copy(connection, parts, fingerprint)
                seed = {"seed_digest": digest, "seed_version": version}
                statements.set_version(connection, version, **seed)
            return statements.seed(connection)

    def _copy(
        self, connection: Connection, parts: Iterable[pa.RecordBatch], fingerprint: str
    ) -> int:
        """Insert all images of an Arrow table; return the version of the last one."""
        version = 0
        for batch in parts:
            if not version:
                self._check_dim(connection, fingerprint, batch["feature"].type.list_size)
            BatchColumns.of(batch).insert(connection, range(len(batch)), version, fingerprint)
            version += len(batch)
        return version

    def write(self, changes: Sequence[Change], fingerprint: str) -> list[Done]:
        """Make changes in their order, all or none of them.

        Of several changes of one image the last one counts; each has its version. A replaced
        image loses its features of other encoders.

        Args:
            fingerprint: The encoder of the features.
        """
        if not changes:
            return []
        with self.transaction("writing to the gallery") as connection:
            dims = {_dim(change.feature) for change in changes if isinstance(change, Put)}
            version = statements.locked_version(connection)
            for dim in dims:
                self._check_dim(connection, fingerprint, dim)
            known = self._known(connection, {change.image_id for change in changes})
            plan = ChangePlan.of(changes, version, known)
            self._store(connection, plan, fingerprint)
            statements.set_version(connection, plan.version)
        return plan.done

    def import_rows(self, rows: BatchColumns, fingerprint: str) -> Tally:
        """Have images as they are in a batch, each id once, all or none of them, in their order.

        Those that are in the gallery so already are left alone, and get no version.

        Args:
            fingerprint: The encoder of the features.
        """
        with self.transaction("importing into the gallery") as connection:
            version = statements.locked_version(connection)
            self._check_dim(connection, fingerprint, rows.dim)
            tally = rows.write(connection, version, fingerprint)
            if tally.changed:
                statements.set_version(connection, version + tally.changed)
        return tally

    def _known(self, connection: Connection, image_ids: set[str]) -> dict[str, str | None]:
        """Return the existing images of these ids, with the paths of their pictures."""
        found: dict[str, str | None] = {}
        for some in tables.chunks(sorted(image_ids)):
            wanted = select(images.c.image_id, images.c.path).where(
                images.c.image_id.in_(some), ~images.c.deleted
            )
            found.update((image_id, path) for image_id, path in connection.execute(wanted))
        return found

    def _store(self, connection: Connection, plan: ChangePlan, fingerprint: str) -> None:
        for some in tables.chunks(sorted(plan.replaced)):
            connection.execute(delete(features).where(features.c.image_id.in_(some)))
        rows = [tables.tombstone(*deleted) for deleted in plan.deleted.items()]
        rows += [
            tables.image_row(put.image_id, version, put.categories, put.attributes, put.path)
            for put, version in plan.put
        ]
        if rows:
            insert = self.insert(images)
            new = {
                column.name: insert.excluded[column.name]
                for column in images.c
                if not column.primary_key
            }
            upsert = insert.on_conflict_do_update(index_elements=["image_id"], set_=new)
            connection.execute(upsert, rows)
        given = [tables.feature_row(fingerprint, put.image_id, put.feature) for put, _ in plan.put]
        if given:
            connection.execute(features.insert(), given)

    def uid(self) -> str:
        """Return a name that no other gallery database has."""
        with self.reading() as connection:
            return str(connection.execute(select(gallery.c.uid)).scalar_one())

    def changes(self, since: int, fingerprint: str, *, limit: int | None = None) -> Changes:
        """Return the last state of every image that changed after a version, or of the first ones.

        Args:
            fingerprint: The encoder whose features are wanted.
            limit: Most images.
        """
        with self.reading() as connection:
            # Read before the rows, which then contain all changes up to it, and maybe newer ones.
            version = statements.version(connection)
            wanted = (
                statements.rows(fingerprint)
                .where(images.c.version > since)
                .order_by(images.c.version)
            )
            rows = [tables.read_row(found) for found in connection.execute(wanted.limit(limit))]
        if limit is not None and len(rows) == limit:
            return Changes(rows[-1].version, rows, more=True)
        return Changes(max([version, since, *(row.version for row in rows)]), rows)

    def load(self, fingerprint: str, *, room: tables.Room = np.empty) -> Contents:
        """Return all images, with their features of this encoder in an array that `room` makes."""
        with self.reading() as connection:
            version, size = statements.version(connection), statements.count(connection)
            dim = statements.known_dim(connection, fingerprint) or 0
            wanted = (
                statements.rows(fingerprint).where(~images.c.deleted).order_by(images.c.version)
            )
            found = connection.execution_options(yield_per=_FETCHED).execute(wanted)
            table, features_GD, unencoded, newest = tables.read_contents(
                found.partitions(), size, dim, room
            )
        return Contents(max(version, newest), table, features_GD, unencoded)

    def unencoded(self, fingerprint: str, *, limit: int = 1000, after: int = 0) -> list[Row]:
        """Return images of versions above `after` without a feature of this encoder, by version."""
        missing = features.c.feature.is_(None)
        wanted = statements.rows(fingerprint).where(
            ~images.c.deleted, missing, images.c.version > after
        )
        wanted = wanted.order_by(images.c.version).limit(limit)
        with self.reading() as connection:
            return [tables.read_row(found) for found in connection.execute(wanted)]

    def add_features(
        self,
        fingerprint: str,
        given: Sequence[tuple[str, int, NDArray[np.float32]]],
        *,
        late: bool = False,
    ) -> int:
        """Store features of images that still have their version and no such feature yet.

        The version of the gallery stays: for this encoder, such an image was not there.

        Args:
            given: Image ids, versions and features (D,).
            late: Who follows the gallery has passed these versions, as the pictures' store failed
                then: images that still have them get new ones.

        Returns:
            How many were stored.
        """
        if not given:
            return 0
        with self.transaction("writing to the gallery") as connection:
            newest = statements.locked_version(connection)
            for dim in {_dim(feature_D) for _, _, feature_D in given}:
                self._check_dim(connection, fingerprint, dim)
            wanting: set[tuple[str, int]] = set()
            for some in tables.chunks([image_id for image_id, _, _ in given]):
                wanted = statements.rows(fingerprint).where(
                    images.c.image_id.in_(some), ~images.c.deleted
                )
                wanting.update(
                    (found.image_id, found.version)
                    for found in connection.execute(wanted)
                    if found.feature is None
                )
            rows = [
                tables.feature_row(fingerprint, image_id, feature_D)
                for image_id, version, feature_D in given
                if (image_id, version) in wanting
            ]
            if rows:
                connection.execute(features.insert(), rows)
            if late:
                statements.renew(connection, newest, [(key, version) for key, version, _ in given])
            return len(rows)

    def encoders(self) -> dict[str, int]:
        """Return the number of images with a feature of each encoder, by its fingerprint."""
        wanted = select(features.c.fingerprint, func.count()).group_by(features.c.fingerprint)
        with self.reading() as connection:
            return {fingerprint: int(size) for fingerprint, size in connection.execute(wanted)}

    def forget(self, fingerprint: str) -> int:
        """Remove all features of an encoder; return how many there were."""
        with self.transaction("writing to the gallery") as connection:
            statements.locked_version(connection)
            gone = connection.execute(delete(features).where(features.c.fingerprint == fingerprint))
            connection.execute(delete(encoders).where(encoders.c.fingerprint == fingerprint))
            return gone.rowcount

    def usual_categories(self) -> tuple[str, ...]:
        """Return the categories of new images that say none: "all", where all images are in that.

        The gallery has no categories of its own then.
        """
        from raycd.data.manifest import CATEGORY  # it reads tables, which who searches does not

        with self.reading() as connection:
            wanted = select(images.c.categories).where(~images.c.deleted).distinct().limit(2)
            every = connection.execute(wanted).scalars().all()
        return (CATEGORY,) if every == [tables.as_json([CATEGORY])] else ()

    def count(self) -> int:
        """Return the number of images."""
        with self.reading() as connection:
            return statements.count(connection)

    def _check_dim(self, connection: Connection, fingerprint: str, dim: int) -> None:
        """Note the size of an encoder's first feature, and refuse others."""
        known = statements.known_dim(connection, fingerprint)
        if known is None:
            connection.execute(encoders.insert(), {"fingerprint": fingerprint, "dim": dim})
        elif known != dim:
            what = "a feature is of another size than this encoder's others"
            raise GalleryError(what, "mismatch", got=dim, expected=known)


def _close(engine: Engine, watch: FileWatch | None) -> None:
    engine.dispose()
    if watch is not None:
        watch.close()


def _dim(feature_D: NDArray[np.float32]) -> int:
    if feature_D.ndim != 1:
        got, expected = f"shape {feature_D.shape}", "shape (D,)"
        raise GalleryError("a feature is not a vector", "mismatch", got=got, expected=expected)
    return len(feature_D)
