"""Leases: who of several processes does something that one at a time may do.

A holder that has ended without giving its lease back loses it when its time is over, by the clock
of the database.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, Double, cast, delete, extract, func

from raycd.gallery_db import GalleryDatabase
from raycd.gallery_db.tables import leases


@dataclass
class Lease:
    """The right of one holder to do what `name` names. Used by one thread.

    Args:
        gallery_db: Where the lease is kept.
        name: What may be done.
        holder: What tells this holder from all others.
        seconds: How long it lasts unless it is held again.
    """

    gallery_db: GalleryDatabase
    name: str
    holder: str
    seconds: float
    _until: float = 0.0

    @property
    def left_s(self) -> float:
        """Seconds for which it is surely ours; 0 where it is not."""
        return max(0.0, self._until - time.monotonic())

    def hold(self) -> bool:
        """Take the lease, or hold it for longer; return whether it is ours.

        Raises:
            GalleryError: The database does not answer.
        """
        began = time.monotonic()
        with self.gallery_db.transaction("taking a lease") as connection:
            now = _now(connection)
            insert = self.gallery_db.insert(leases).values(
                name=self.name, holder=self.holder, until=now + self.seconds
            )
            take = insert.on_conflict_do_update(
                index_elements=["name"],
                set_={"holder": insert.excluded.holder, "until": insert.excluded.until},
                where=(leases.c.holder == self.holder) | (leases.c.until <= now),
            )
            taken = connection.execute(take.returning(leases.c.name)).one_or_none() is not None
        self._until = began + self.seconds if taken else 0.0
        return taken

    def release(self) -> None:
        """Give the lease back, where it is ours."""
        self._until = 0.0
        ours = (leases.c.name == self.name) & (leases.c.holder == self.holder)
        with self.gallery_db.transaction("giving a lease back") as connection:
            connection.execute(delete(leases).where(ours))


def _now(connection: Connection) -> ColumnElement[float]:
    """Return the database's clock in seconds: processes on several nodes have several clocks."""
    if connection.dialect.name == "postgresql":
        return cast(extract("epoch", func.clock_timestamp()), Double)
    return cast(func.julianday("now"), Double) * 86_400.0
