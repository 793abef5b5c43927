"""Images and changes of a gallery as plain values: what its database writes and reads.

Shapes: G images, D feature size.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

MAX_ID = 512  # characters of an image's id
USABLE_ID = (
    f"1 to {MAX_ID} characters in one line, not all invisible, without controls and without spaces "
    "around them, not . or .."
)
"""What `is_usable_id` expects, for messages."""
_UNWRITTEN = {"Cc", "Cs", "Cn", "Zl", "Zp"}  # controls, no characters, ends of lines
_INVISIBLE = {"Cf", "Mn", "Zs"}  # joiners, marks of direction and on others, spaces
_BLANK = set("\u115f\u1160\u2800\u3164\uffa0")  # letters and signs that show nothing


def is_usable_id(image_id: str) -> bool:
    """Return whether somebody can write and read an id, and a URL leads to it.

    Names of files have spaces and joiners of many kinds (macOS's screenshots, Persian, emoji).
    """
    if not 0 < len(image_id) <= MAX_ID or image_id != image_id.strip() or image_id in (".", ".."):
        return False
    if image_id.isascii() and image_id.isprintable():
        return True
    kinds = set(map(unicodedata.category, image_id))
    shown = set(map(unicodedata.category, set(image_id) - _BLANK))
    return not kinds & _UNWRITTEN and not shown <= _INVISIBLE


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
    """All changes since a version, in their order, and the version that they lead to.

    Or the first of them: the last states of the images whose last change is up to `version`.
    """

    version: int
    rows: list[Row]
    more: bool = False
    """Whether there may be later ones. Then an image may be absent here that had a change up to
    `version`, and another one after it."""


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
