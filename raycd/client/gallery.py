"""Images for the gallery: as values of Python, and as they go over HTTP."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Protocol
from urllib.parse import quote

from pydantic import ValidationError

from raycd.api import ImportLine
from raycd.client import request
from raycd.errors import DataError


class Array(Protocol):
    """An array of numpy or torch."""

    def tolist(self) -> Any: ...


Feature = Array | Sequence[float]


def read(
    fields: Mapping[str, Any], root: str | PathLike[str] = ""
) -> tuple[ImportLine, bytes | None]:
    """Check an image; return it, and the bytes of its field `image`, a file or its bytes.

    `category` may be one text, `feature` numbers (D,) or their base64.

    Raises:
        DataError: The image is impossible, or its file cannot be read.
    """
    given = dict(fields)
    image = given.pop("image", None)
    if isinstance(given.get("category"), str):
        given["category"] = [given["category"]]
    if not isinstance(given.get("feature"), str | None):
        given["feature"] = _base64(given["feature"])
    try:
        line = ImportLine.model_validate(given)
    except ValidationError as error:
        raise DataError(
            "the image is impossible", got=request.wrong(error), do="see raycd.api.ImportLine"
        ) from error
    ways = [name for name in ("image", "image_base64", "feature") if fields.get(name) is not None]
    if not ways or ways[:2] == ["image", "image_base64"]:
        got = " and ".join(ways) or "neither a picture nor a feature"
        raise DataError(
            "the image is impossible", got=got, expected="one picture, a feature, or both"
        )
    return line, None if image is None else request.file(image, root)


def as_line(fields: Mapping[str, Any], root: str | PathLike[str] = "") -> ImportLine:
    """Return the image with its picture in base64, as an import needs it. Raises DataError."""
    line, image = read(fields, root)
    if image is not None:
        line.image_base64 = base64.b64encode(image).decode()
    return line


def path(image_id: str, of: str = "gallery") -> str:
    """Return the path, in the gallery's, of one of its images or of its picture (`of` images).

    Raises:
        DataError: A URL cannot carry the id.
    """
    try:
        if isinstance(image_id, str) and image_id.strip() not in ("", ".", ".."):
            return f"{of}/{quote(image_id, safe='')}"
    except UnicodeEncodeError:  # of a command line that is not UTF-8, say
        pass
    raise DataError(
        "the image_id is impossible",
        got=ascii(image_id),
        expected="a name in UTF-8, other than . and ..",
    )


def _base64(feature: Feature) -> str:
    """Return numbers (D,) as little-endian float32 in base64. Raises DataError."""
    try:
        numbers = feature if isinstance(feature, Sequence) else feature.tolist()
        if not all(map(math.isfinite, numbers)):
            raise ValueError("a number that is not finite")
        return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()
    except (AttributeError, TypeError, ValueError, OverflowError, struct.error) as error:
        expected = "finite numbers of one dimension, as float32 holds them"
        raise DataError("the feature is impossible", got=error, expected=expected) from error
