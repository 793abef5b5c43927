"""A picture that is a part of a file, named by what follows the file's path.

    photo.jpg#dilated=10,20,30.5,40          a part of a photograph, as GeneCIS cuts it out
    data/train-0.parquet#image=17            the picture in row 17 of a column of a Parquet file

The path before the number sign is that of the file: its state is looked up there.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from PIL import Image

DILATION = 0.7  # GeneCIS's

_PART = re.compile(r"(?s)(?P<file>.+)#(?P<kind>dilated)=(?P<value>[-+.\deE,]+)")
_ROW = re.compile(r"(?s)(?P<file>.+\.parquet)#(?P<column>[^#=]+)=(?P<row>\d+)")


class Box(NamedTuple):
    """A bounding box in pixels."""

    left: float
    top: float
    width: float
    height: float

    def __str__(self) -> str:
        return ",".join(f"{number:g}" for number in self)


class PictureRow(NamedTuple):
    """A picture in a row of a Parquet file."""

    file: str
    column: str
    row: int


def dilated(box: Box) -> str:
    """Return the end of a path that names this part of a picture."""
    return f"#dilated={box}"


def in_row(file: str, column: str, row: int) -> str:
    """Return the path of a picture in a Parquet file. `file` ends with ".parquet"."""
    return f"{file}#{column}={row}"


def split_box(path: str) -> tuple[str, Box | None]:
    """Return the path of the whole picture and the part that is meant; None: all of it."""
    match = _PART.fullmatch(path)
    if match is None:
        return path, None
    try:
        return match["file"], Box(*(float(number) for number in match["value"].split(",")))
    except (TypeError, ValueError):
        return path, None


def split_row(path: str) -> PictureRow | None:
    """Return which row of a Parquet file a path names; None where it names a file."""
    match = _ROW.fullmatch(path)
    return None if match is None else PictureRow(match["file"], match["column"], int(match["row"]))


def file_of(path: str) -> str:
    """Return the file that a picture is in."""
    whole, _ = split_box(path)
    row = split_row(whole)
    return whole if row is None else row.file


def cut(image: Image.Image, box: Box) -> Image.Image:
    """Return the part of a picture as GeneCIS's evaluation makes it, a square on black.

    The box begins DILATION of its sides further left and above and is 1 + DILATION times as large,
    as far as the picture goes.
    """
    left, top = max(0.0, box.left - DILATION * box.width), max(0.0, box.top - DILATION * box.height)
    right = max(left, min(image.width, left + (1 + DILATION) * box.width))
    bottom = max(top, min(image.height, top + (1 + DILATION) * box.height))
    part = image.crop((round(left), round(top), round(right), round(bottom)))
    side = max(part.size) if min(part.size) else 0  # nothing of the picture is in it
    square = Image.new("RGB", (side, side))
    square.paste(part, ((side - part.width) // 2, (side - part.height) // 2))
    return square
