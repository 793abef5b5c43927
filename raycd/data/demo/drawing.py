"""The drawing of garments, with nuisance (background, scale, shift, shade) that no text names."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from raycd.data.demo.garments import COLOURS, Garment

At = Callable[[float, float], tuple[float, float]]  # garment coordinates -> pixels

SKIN = (224, 186, 160)
# Half width of the body, as a share of the canvas
_WAIST = {"dress": 0.17, "shirt": 0.19, "toptee": 0.16}
_HEM_Y = {
    "dress": {"short": 0.66, "medium": 0.80, "long": 0.95},
    "shirt": {"short": 0.58, "medium": 0.70, "long": 0.84},
    "toptee": {"short": 0.52, "medium": 0.64, "long": 0.78},
}


def draw(rng: np.random.Generator, garment: Garment, size: int) -> Image.Image:
    """Draw the garment, RGB, size x size pixels, with random background, scale, shift and shade."""
    shade = rng.uniform(0.82, 1.12)
    scale = rng.uniform(0.82, 1.0) * size
    x0 = size / 2 + rng.uniform(-0.07, 0.07) * size
    y0 = rng.uniform(0.0, 0.06) * size

    def at(x: float, y: float) -> tuple[float, float]:
        """Map garment coordinates (x from the middle, y from the top, as shares) to pixels."""
        return (x0 + x * scale, y0 + y * scale)

    def tint(name: str) -> tuple[int, ...]:
        return tuple(int(min(255.0, c * shade)) for c in COLOURS[name])

    light = rng.integers(150, 250, 3)
    image = Image.new("RGB", (size, size), tuple(int(v) for v in light))
    brush = ImageDraw.Draw(image)
    _background(rng, brush, size, light)
    brush.ellipse([at(-0.075, 0.0), at(0.075, 0.15)], fill=SKIN)  # a head: the neck line shows
    mask = Image.new("L", (size, size), 0)
    outline = ImageDraw.Draw(mask)
    for polygon in _silhouette(garment):
        outline.polygon([at(x, y) for x, y in polygon], fill=255)
    cloth = Image.new("RGB", (size, size), tint(garment.colour))
    _pattern(ImageDraw.Draw(cloth), garment.pattern, tint(garment.accent), size, at)
    image.paste(cloth, (0, 0), mask)
    _neck(brush, garment.neck, at)
    _trim(brush, garment, tint(garment.accent), at, size)
    return image


def _background(
    rng: np.random.Generator, brush: ImageDraw.ImageDraw, size: int, light: np.ndarray
) -> None:
    """Draw a floor or a wall of another tone, or nothing."""
    if rng.random() < 0.5:
        edge = int(rng.uniform(0.3, 0.9) * size)
        tone = tuple(int(v) for v in np.clip(light + rng.integers(-35, 35, 3), 0, 255))
        brush.rectangle(
            [0, edge, size, size] if rng.random() < 0.5 else [edge, 0, size, size], fill=tone
        )


def _silhouette(garment: Garment) -> list[list[tuple[float, float]]]:
    """Return polygons of body and sleeves, in garment coordinates."""
    waist = _WAIST[garment.category]
    hem_y = _HEM_Y[garment.category][garment.length]
    flare = waist + (0.45 * (hem_y - 0.4) if garment.category == "dress" else 0.02)
    body = [
        (-0.16, 0.14),
        (0.16, 0.14),
        (waist, 0.4),
        (flare, hem_y),
        (-flare, hem_y),
        (-waist, 0.4),
    ]
    parts = [body]
    reach = {"none": None, "short": (0.30, 0.30), "long": (0.40, 0.56)}[garment.sleeves]
    if reach is not None:
        x, y = reach
        parts += [
            [(s * 0.15, 0.14), (s * x, y), (s * (x - 0.1), y + 0.03), (s * 0.13, 0.28)]
            for s in (-1, 1)
        ]
    return parts


def _pattern(
    brush: ImageDraw.ImageDraw, pattern: str, accent: tuple[int, ...], size: int, at: At
) -> None:
    """Draw the pattern over the whole canvas; the mask cuts the garment out of it."""
    step = max(4, size // 9)
    thick = max(1, size // 28)
    dx, dy = (int(v) % step for v in at(0, 0))
    if pattern in ("striped", "checked"):
        for y in range(dy - step, size + step, step):
            brush.rectangle([0, y, size, y + thick], fill=accent)
    if pattern in ("pinstriped", "checked"):
        for x in range(dx - step, size + step, step):
            brush.rectangle([x, 0, x + thick, size], fill=accent)
    if pattern == "dotted":
        for row, y in enumerate(range(dy - step, size + step, step)):
            for x in range(dx - step + (row % 2) * step // 2, size + step, step):
                brush.ellipse([x, y, x + thick + 1, y + thick + 1], fill=accent)


def _neck(brush: ImageDraw.ImageDraw, neck: str, at: At) -> None:
    if neck == "round":
        brush.chord([at(-0.07, 0.09), at(0.07, 0.19)], 0, 180, fill=SKIN)
    elif neck == "deep":
        brush.polygon([at(-0.07, 0.135), at(0.07, 0.135), at(0.0, 0.30)], fill=SKIN)
    else:
        brush.rectangle([at(-0.08, 0.135), at(0.08, 0.22)], fill=SKIN)


def _trim(
    brush: ImageDraw.ImageDraw, garment: Garment, accent: tuple[int, ...], at: At, size: int
) -> None:
    """Draw the detail, and the row of buttons that makes a shirt a shirt."""
    waist = _WAIST[garment.category]
    if garment.detail == "belt":
        brush.rectangle([at(-waist, 0.39), at(waist, 0.44)], fill=accent)
    elif garment.detail == "pocket":
        brush.rectangle([at(0.03, 0.26), at(0.12, 0.36)], fill=accent)
    elif garment.detail == "print":
        brush.ellipse([at(-0.09, 0.31), at(0.09, 0.49)], fill=accent)
    if garment.category == "shirt":
        for y in np.arange(0.33, _HEM_Y["shirt"][garment.length], 0.09):
            x, v = at(0.0, float(y))
            brush.rectangle(
                [x - 0.5, v, x + max(0.5, size / 90), v + max(1, size / 48)], fill=(250, 250, 250)
            )
