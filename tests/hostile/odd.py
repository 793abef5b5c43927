"""What an odd file of a picture is, and what all of the corpus are drawn of.

Unless it says otherwise a picture is 16 x 16: its left half is LEFT, its right half RIGHT.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Literal

import numpy as np
from PIL import Image

from raycd.data.images import Reason

Colour = tuple[int, int, int]

SIDE = 16
LEFT, RIGHT = (200, 80, 40), (20, 60, 240)
BLACK, WHITE, DARK, LIGHT = (0, 0, 0), (255, 255, 255), (51, 51, 51), (204, 204, 204)


@dataclass(frozen=True)
class Odd:
    """A file and its outcome: "ok" with colours at some points, each within `near`, or a reason."""

    name: str
    data: bytes
    outcome: Literal["ok"] | Reason = "ok"
    at: dict[tuple[int, int], Colour] = field(default_factory=dict)
    size: tuple[int, int] = (SIDE, SIDE)
    near: int = 0

    def wrong(self, image: Image.Image) -> str:
        """Return what is wrong with the picture that was read from it; empty where nothing is."""
        if (image.mode, image.size) != ("RGB", self.size):
            return f"{image.mode}, {image.size}"
        for point, colour in self.at.items():
            found = image.getpixel(point)
            if np.abs(np.subtract(found, colour)).max() > self.near:  # type: ignore[arg-type]  # numbers in all modes here
                return f"{found} at {point}, expected {colour}"
        return ""


def halves(
    left: Colour = LEFT, right: Colour = RIGHT, size: tuple[int, int] = (SIDE, SIDE)
) -> Image.Image:
    image = Image.new("RGB", size, right)
    image.paste(left, (0, 0, size[0] // 2, size[1]))
    return image


def noise() -> Image.Image:
    """Return 64 x 64 pixels that no format compresses: a truncated file lacks some of them."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def noise_at(x: int, y: int) -> Colour:
    """Return the colour of a pixel of `noise`."""
    red, green, blue = np.asarray(noise())[y, x].tolist()
    return red, green, blue


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def ok(name: str, data: bytes, left: Colour = LEFT, right: Colour = RIGHT, **more: Any) -> Odd:
    return Odd(name, data, at={(3, 8): left, (12, 8): right}, **more)


def broken(name: str, data: bytes, outcome: Reason = "truncated") -> Odd:
    return Odd(name, data, outcome)
