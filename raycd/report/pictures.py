"""Images as data URIs, small enough to stand in a page by the hundred."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from io import BytesIO

from PIL import Image

Picture = Image.Image | bytes | None  # decoded, still encoded, or missing

_LONGEST = 224  # pixels; shown at half of that or less, so sharp on dense screens too


def data_uri(picture: Picture) -> str:
    """A thumbnail as data:image/jpeg;base64,...; empty where the image is missing or broken."""
    image = _decoded(picture)
    if image is None:
        return ""
    if image.mode != "RGB":
        over = Image.new("RGBA", image.size, "white")
        over.alpha_composite(image.convert("RGBA"))
        image = over.convert("RGB")
    if max(image.size) > _LONGEST:
        image = image.copy()
        image.thumbnail((_LONGEST, _LONGEST), Image.Resampling.LANCZOS)
    encoded = BytesIO()
    image.save(encoded, "JPEG", quality=88, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode("ascii")


def ratio(pictures: Iterable[Picture]) -> float:
    """Width by height of the frame in which these pictures look best: their median, within reason."""
    ratios = sorted(
        image.width / image.height for image in map(_decoded, pictures) if image is not None
    )
    return min(1.4, max(0.66, ratios[len(ratios) // 2])) if ratios else 1.0


def _decoded(picture: Picture) -> Image.Image | None:
    if not isinstance(picture, bytes):
        return picture
    from raycd.data.images import BrokenImage, decode  # brings torch

    try:
        return decode(picture, max_pixels=100_000_000, min_side=1)
    except BrokenImage:
        return None
