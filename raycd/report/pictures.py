"""Images as data URIs, small enough for hundreds of them in a page."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from io import BytesIO

from PIL import Image

Picture = Image.Image | None  # None where it is missing or broken

_LONGEST = 224  # pixels; shown at half of that or less, so sharp on dense screens too


def data_uri(image: Picture) -> str:
    """Return a thumbnail as data:image/jpeg;base64,...; empty for a missing image."""
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


def ratio(images: Iterable[Picture]) -> float:
    """Return width by height of a frame for all images: their median, from 0.66 to 1.4."""
    ratios = sorted(image.width / image.height for image in images if image is not None)
    return min(1.4, max(0.66, ratios[len(ratios) // 2])) if ratios else 1.0
