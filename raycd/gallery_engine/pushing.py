"""The push of a gallery database's changes to a collection, in the order of their versions.

Whoever pushes holds a lease. It may die at any point: the marker says what is surely there, and
what is pushed again replaces itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from raycd.errors import GalleryError
from raycd.gallery.records import Row
from raycd.gallery_db import GalleryDatabase
from raycd.gallery_db.leases import Lease
from raycd.gallery_engine.collection import WRITE_S, Collection, Marker
from raycd.gallery_engine.expressions import ALL

LEASE_S = 30.0  # that a lease lasts; its holder takes it again at each third
TOGETHER, FEWEST = 1000, 10  # images of a call: half as many after one that failed


def name(gallery_db: GalleryDatabase, fingerprint: str) -> str:
    """Return the name of the collection of a database for an encoder."""
    return f"raycd_{gallery_db.uid()}_{fingerprint[:16]}"


class Push:
    """The push of one process, in one thread.

    Args:
        gallery_db: The record of truth.
        fingerprint: The encoder whose features are pushed.
        collection: Where to.
        encoded: Returns rows with the features that they lack, where it can make them.
        lease: Of the collection.
    """

    def __init__(
        self,
        gallery_db: GalleryDatabase,
        fingerprint: str,
        collection: Collection,
        encoded: Callable[[Sequence[Row]], list[Row]],
        lease: Lease,
    ) -> None:
        self._gallery_db, self._fingerprint, self._collection = gallery_db, fingerprint, collection
        self._encoded, self._lease = encoded, lease
        self._marker: Marker | None = None  # as it was written or read last, by us
        self._together = TOGETHER
        self._pushed = 0  # version up to which nothing is left to do
        self._compared = False  # whether the images were counted since the lease was taken

    def advance(self) -> bool:
        """Bring the next changes to the collection; return whether there may be more.

        Nothing is done where another process has the lease.

        Raises:
            GalleryError: Engine or database does not answer; what was not pushed is later.
        """
        if not self._held():
            return False
        try:
            more = self._advance()
        except BaseException:
            self._marker = None  # the next one looks where the collection stands
            self._together = max(FEWEST, self._together // 2)
            raise
        self._together = min(TOGETHER, 2 * self._together)
        return more

    def _advance(self) -> bool:
        newest = self._gallery_db.version()
        if self._marker is None:
            self._marker = self._begin(newest)
        elif self._pushed >= newest and self._is_another(self._marker, newest):
            self._marker = None
            return True
        if self._pushed >= newest:
            self._compare(self._marker, newest)
            return self._pushed < newest
        changes = self._gallery_db.changes(self._pushed, self._fingerprint, limit=self._together)
        rows = self._encoded(changes.rows)
        self._check_lease()
        self._collection.put([row for row in rows if row.feature is not None])
        self._check_lease()
        self._collection.delete([row.image_id for row in rows if row.feature is None])
        self._check_lease()
        self._pushed = changes.version
        version = max(self._marker.version, changes.version)
        self._marker = self._collection.mark(version, self._marker.until)
        return self._pushed < newest or not self._compared

    def _is_another(self, known: Marker, newest: int) -> bool:
        # Somebody may have removed the collection, or put the database back to a backup
        return self._collection.marker() != known or known.version > newest

    @property
    def holds(self) -> bool:
        """Whether this process has the lease."""
        return self._lease.left_s > 0

    def _held(self) -> bool:
        """Hold the lease; return whether it is ours."""
        left_s = self._lease.left_s
        if left_s > LEASE_S * 2 / 3:
            return True
        held = self._lease.hold()
        if not held or left_s == 0:  # another one may have pushed meanwhile
            self._marker = None
        return held

    def _begin(self, newest: int) -> Marker:
        """Return where the collection stands; make it where it is absent."""
        found, self._pushed, self._compared = self._collection.marker(), 0, False
        if found is not None and found.version > newest:
            # The database was put back to a backup: what the others were nobody knows
            self._check_lease()
            self._collection.drop()
            found = None
        if found is None:
            self._check_lease()
            self._collection.make()
            self._check_lease()
            return self._collection.mark(0, newest)
        self._pushed = found.version
        return found

    def _compare(self, marker: Marker, newest: int) -> None:
        """Have all images pushed again where there are more or fewer than have features.

        Some were encoded after their version, or somebody has removed some.
        """
        if self._compared:
            return
        self._compared = True
        there = self._gallery_db.encoders().get(self._fingerprint, 0)
        counted = self._collection.count(ALL, written=marker.written)
        # Each change since then explains one
        if abs(counted - there) > self._gallery_db.version() - newest:
            self._pushed = 0

    def _check_lease(self) -> None:
        # What is sent now is written before another process may push a newer state of an image.
        # A call may take WRITE_S twice: pymilvus makes it again until its time is over.
        if 0 < self._lease.left_s < 2 * WRITE_S:
            self._lease.hold()
        if self._lease.left_s < 2 * WRITE_S:
            raise GalleryError("the lease of the collection was lost: it took too long", "locked")

    def close(self) -> None:
        """Give the lease back."""
        self._lease.release()
