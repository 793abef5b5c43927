"""What is written to the gallery database and read from it, as plain values.

Shapes: G images, D feature size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Put:
    """An image to add, or to put in place of the one with the same id."""

    image_id: str
    feature: NDArray[np.float32]
    """(D,), as the encoder gives it, not normalised."""
    categories: tuple[str, ...] = ()
    attributes: Mapping[str, str] = field(default_factory=dict)
    path: str | None = None
    """Its picture: a path, a URI, or what `Pictures.add` returned; None where it has none."""


@dataclass(frozen=True, slots=True)
class Delete:
    """An image to remove."""

    image_id: str


Change = Put | Delete


@dataclass(frozen=True, slots=True)
class Done:
    """What a change did, once it is on the disk."""

    version: int
    """Version of the gallery database after the change; unchanged where nothing was deleted."""
    existed: bool
    """Whether there was such an image before."""
    old_path: str | None
    """The picture of the image that was replaced or removed."""


@dataclass(frozen=True, slots=True)
class Row:
    """The last state of an image that was changed."""

    image_id: str
    version: int
    deleted: bool
    categories: tuple[str, ...]
    attributes: Mapping[str, str]
    path: str | None
    feature: NDArray[np.float32] | None
    """(D,); None where the image was deleted or the requested encoder has not encoded it yet."""


@dataclass(frozen=True, slots=True)
class Changes:
    """All changes since a version, in their order, and the version that they lead to."""

    version: int
    rows: list[Row]


@dataclass(frozen=True, slots=True)
class Contents:
    """All images at a version, in the order of their versions."""

    version: int
    table: pa.Table
    """Columns of `gallery.static.SCHEMA`, (G,) rows."""
    features_GD: NDArray[np.float32]
    """Not normalised."""
    unencoded: list[Row]
    """Images that the requested encoder has not encoded yet; the table does not contain them."""


@dataclass(frozen=True, slots=True)
class Seed:
    """The bundle's gallery that the database was filled with at first."""

    digest: str
    """SHA-256 of its gallery.parquet."""
    version: int
    """Version of the database after that: the bundle's images have versions 1 to this one."""


@dataclass(frozen=True)
class Plan:
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
    def of(cls, changes: Sequence[Change], version: int, known: Mapping[str, str | None]) -> Plan:
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
