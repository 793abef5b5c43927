"""What is written to the gallery database and read from it, as plain values.

Shapes: G images, D feature size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Put:
    """An image that is added, or takes the place of the one of the same id."""

    image_id: str
    feature: NDArray[np.float32]
    """(D,), as the encoder gives it, not normalised."""
    categories: tuple[str, ...] = ()
    attributes: Mapping[str, str] = field(default_factory=dict)
    path: str | None = None
    """Where its picture is: a path or URI, or what `Pictures.add` returned; None: it has none."""


@dataclass(frozen=True, slots=True)
class Delete:
    """An image that is removed."""

    image_id: str


Change = Put | Delete


@dataclass(frozen=True, slots=True)
class Done:
    """What a change did, once it is on the disk."""

    version: int
    """The gallery database's after it; where there was nothing to delete, the one that it had
    already.
    """
    existed: bool
    """Whether there was such an image before."""
    old_path: str | None
    """The picture of the image that it replaced or removed."""


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
    """(D,); None where it was deleted, or where the asked encoder has not yet encoded its picture.
    """


@dataclass(frozen=True, slots=True)
class Changes:
    """All that was changed after a version, in the order of the changes, and the version that this
    makes.
    """

    version: int
    rows: list[Row]


@dataclass(frozen=True, slots=True)
class Contents:
    """All images at a version, in the order of their versions."""

    version: int
    table: pa.Table
    """image_id, categories, path, attributes: of the types of `bundle.gallery_table`, without its
    features.
    """
    features_GD: NDArray[np.float32]
    """Not normalised."""
    unencoded: list[Row]
    """Images that the asked encoder has not yet encoded; they are not in the table."""


@dataclass(frozen=True, slots=True)
class Seed:
    """The bundle's gallery that the gallery database began with."""

    digest: str
    """SHA-256 of its gallery.parquet."""
    version: int
    """The gallery database's with all of it, and nothing else, in it: its images have versions 1 to
    this, in their order.
    """
