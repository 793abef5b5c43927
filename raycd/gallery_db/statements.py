"""Statements about the gallery's state, each in the transaction of its caller."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Select, func, select, update

from raycd.gallery.records import Seed
from raycd.gallery_db.tables import STATE, encoders, features, gallery, images


def version(connection: Connection) -> int:
    """Return the gallery's version."""
    return int(connection.execute(select(gallery.c.version)).scalar_one())


def locked_version(connection: Connection) -> int:
    """Return the gallery's version, which nobody else changes before this transaction ends."""
    return int(connection.execute(select(gallery.c.version).with_for_update()).scalar_one())


def seed(connection: Connection) -> Seed | None:
    """Return what the gallery was begun with; None where nothing was."""
    wanted = select(gallery.c.seed_digest, gallery.c.seed_version)
    digest, version = connection.execute(wanted).one()
    return None if digest is None else Seed(digest, version)


def rows(fingerprint: str) -> Select[Any]:
    """Select what `tables.read_row` reads, of all images."""
    theirs = (features.c.image_id == images.c.image_id) & (features.c.fingerprint == fingerprint)
    return select(images, features.c.feature).select_from(images.outerjoin(features, theirs))


def count(connection: Connection) -> int:
    """Return the number of images."""
    wanted = select(func.count()).select_from(images).where(~images.c.deleted)
    return int(connection.execute(wanted).scalar_one())


def known_dim(connection: Connection, fingerprint: str) -> int | None:
    """Return the size of an encoder's features; None where there are none."""
    wanted = select(encoders.c.dim).where(encoders.c.fingerprint == fingerprint)
    return connection.execute(wanted).scalar()


def renew(connection: Connection, newest: int, given: Iterable[tuple[str, int]]) -> None:
    """Give images that still have these versions new ones, in their order, after the newest."""
    for image_id, version in sorted(given, key=lambda one: one[1]):
        same = (images.c.image_id == image_id) & (images.c.version == version)
        changed = update(images).where(same, ~images.c.deleted)
        newest += connection.execute(changed.values(version=newest + 1)).rowcount
    set_version(connection, newest)


def set_version(connection: Connection, version: int, **more: Any) -> None:
    """Set the version of the gallery's last change, and other columns of its state."""
    of_state = update(gallery).where(gallery.c.id == STATE)
    connection.execute(of_state.values(version=version, **more))
