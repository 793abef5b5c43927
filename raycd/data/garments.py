"""The garments of the embedded catalogue: what they are made of, how they are drawn, how people speak of them.

A garment is a choice of attributes. Drawing adds nuisance (background, scale, shift, shade) that no sentence mentions.
Two languages speak of garments: `describe` writes the generic captions of pre-training ("a photo of a red dress"),
`compare` the modification texts of triplets ("has long sleeves and is blue"). The gap between the two is the one that
the paper's stage 1 closes (3.2.1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

import numpy as np
from PIL import Image, ImageDraw

At = Callable[[float, float], tuple[float, float]]  # garment coordinates -> pixels

CATEGORIES = ("dress", "shirt", "toptee")

COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (200, 40, 45),
    "orange": (235, 130, 35),
    "yellow": (235, 210, 60),
    "green": (50, 140, 65),
    "teal": (40, 150, 155),
    "blue": (45, 80, 190),
    "purple": (125, 60, 160),
    "pink": (240, 150, 185),
    "brown": (120, 75, 45),
    "grey": (135, 135, 140),
    "black": (35, 35, 40),
    "white": (242, 242, 238),
}
PATTERNS = ("plain", "striped", "pinstriped", "dotted", "checked")
SLEEVES = ("none", "short", "long")
LENGTHS = ("short", "medium", "long")
NECKS = ("round", "deep", "square")
DETAILS = ("none", "belt", "pocket", "print")
SKIN = (224, 186, 160)


@dataclass(frozen=True)
class Garment:
    """One garment. Every field but the category can be changed by a modification text."""

    category: str
    colour: str
    pattern: str
    accent: str  # colour of pattern and detail
    sleeves: str
    length: str
    neck: str
    detail: str


CHOICES: Mapping[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "pattern": PATTERNS,
    "accent": tuple(COLOURS),
    "sleeves": SLEEVES,
    "length": LENGTHS,
    "neck": NECKS,
    "detail": DETAILS,
}


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def random_garment(rng: np.random.Generator, category: str) -> Garment:
    """A garment of `category` with every attribute chosen at random; the accent never equals the colour."""
    garment = Garment(category=category, **{name: _pick(rng, options) for name, options in CHOICES.items()})
    while garment.accent == garment.colour:
        garment = replace(garment, accent=_pick(rng, CHOICES["accent"]))
    return garment


def changed(rng: np.random.Generator, garment: Garment, count: int) -> Garment:
    """`garment` with `count` attributes changed to other values; each change can be seen in the picture."""
    result = garment
    names = [name for name in CHOICES if name != "accent"]
    for name in rng.permutation(np.array(names))[:count]:
        current = getattr(result, str(name))
        options = tuple(o for o in CHOICES[str(name)] if o != current and not (name == "colour" and o == result.accent))
        result = replace(result, **{str(name): _pick(rng, options)})
    return result


def differences(reference: Garment, target: Garment) -> list[str]:
    """Names of the attributes that differ and can be seen (an accent that nothing wears cannot)."""
    names = [f.name for f in fields(Garment) if getattr(reference, f.name) != getattr(target, f.name)]
    if "accent" in names and target.pattern == "plain" and target.detail == "none":
        names.remove("accent")
    return names


# ---- drawing -------------------------------------------------------------------------------------------------------

_WAIST = {"dress": 0.17, "shirt": 0.19, "toptee": 0.16}  # half width of the body, as a share of the canvas
_HEM_Y = {
    "dress": {"short": 0.66, "medium": 0.80, "long": 0.95},
    "shirt": {"short": 0.58, "medium": 0.70, "long": 0.84},
    "toptee": {"short": 0.52, "medium": 0.64, "long": 0.78},
}


def draw(rng: np.random.Generator, garment: Garment, size: int) -> Image.Image:
    """A picture of the garment, RGB, size x size pixels, with random background, scale, shift and shade."""
    shade = rng.uniform(0.82, 1.12)
    scale = rng.uniform(0.82, 1.0) * size
    x0 = size / 2 + rng.uniform(-0.07, 0.07) * size
    y0 = rng.uniform(0.0, 0.06) * size

    def at(x: float, y: float) -> tuple[float, float]:
        """From garment coordinates (x from the middle, y from the top, as shares of the canvas) to pixels."""
        return (x0 + x * scale, y0 + y * scale)

    def tint(name: str) -> tuple[int, ...]:
        return tuple(int(min(255.0, c * shade)) for c in COLOURS[name])

    light = rng.integers(150, 250, 3)
    image = Image.new("RGB", (size, size), tuple(int(v) for v in light))
    brush = ImageDraw.Draw(image)
    _background(rng, brush, size, light)
    brush.ellipse([at(-0.075, 0.0), at(0.075, 0.15)], fill=SKIN)  # a head, so that the neck line shows
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


def _background(rng: np.random.Generator, brush: ImageDraw.ImageDraw, size: int, light: np.ndarray) -> None:
    """A floor or a wall of another tone, or nothing."""
    if rng.random() < 0.5:
        edge = int(rng.uniform(0.3, 0.9) * size)
        tone = tuple(int(v) for v in np.clip(light + rng.integers(-35, 35, 3), 0, 255))
        brush.rectangle([0, edge, size, size] if rng.random() < 0.5 else [edge, 0, size, size], fill=tone)


def _silhouette(garment: Garment) -> list[list[tuple[float, float]]]:
    """Polygons of body and sleeves, in garment coordinates."""
    waist = _WAIST[garment.category]
    hem_y = _HEM_Y[garment.category][garment.length]
    flare = waist + (0.45 * (hem_y - 0.4) if garment.category == "dress" else 0.02)
    body = [(-0.16, 0.14), (0.16, 0.14), (waist, 0.4), (flare, hem_y), (-flare, hem_y), (-waist, 0.4)]
    parts = [body]
    reach = {"none": None, "short": (0.30, 0.30), "long": (0.40, 0.56)}[garment.sleeves]
    if reach is not None:
        x, y = reach
        parts += [[(s * 0.15, 0.14), (s * x, y), (s * (x - 0.1), y + 0.03), (s * 0.13, 0.28)] for s in (-1, 1)]
    return parts


def _pattern(brush: ImageDraw.ImageDraw, pattern: str, accent: tuple[int, ...], size: int, at: At) -> None:
    """Cover the whole canvas with the pattern; the mask cuts the garment out of it."""
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


def _trim(brush: ImageDraw.ImageDraw, garment: Garment, accent: tuple[int, ...], at: At, size: int) -> None:
    """Detail, and the row of buttons that makes a shirt a shirt."""
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
            brush.rectangle([x - 0.5, v, x + max(0.5, size / 90), v + max(1, size / 48)], fill=(250, 250, 250))


# ---- words ---------------------------------------------------------------------------------------------------------

_NOUN = {"dress": "dress", "shirt": "shirt", "toptee": "top"}
_GENERIC = {  # the language of pre-training
    "sleeves": {"none": "sleeveless", "short": "short sleeve", "long": "long sleeve"},
    "length": {"short": "mini", "medium": "regular", "long": "maxi"},
    "neck": {"round": "crew neck", "deep": "v neck", "square": "square neck"},
    "detail": {"none": "", "belt": "belted", "pocket": "pocket", "print": "logo"},
}
_CHANGE = {  # the language of triplets; {x} is the new value
    "colour": (("is {x}", "is more {x} in color", "the color is {x}"), None),
    "accent": (("has {x} accents", "the second color is {x}"), None),
    "pattern": (
        None,
        {
            "plain": ("is solid colored", "has no pattern"),
            "striped": ("has horizontal stripes", "has lines going across"),
            "pinstriped": ("has vertical stripes", "has lines going down"),
            "dotted": ("has polka dots", "is covered in spots"),
            "checked": ("is plaid", "has a grid of squares on it"),
        },
    ),
    "sleeves": (
        None,
        {
            "none": ("has no sleeves", "shows bare arms"),
            "short": ("has short sleeves", "covers only the upper arms"),
            "long": ("has long sleeves", "covers the arms to the wrists"),
        },
    ),
    "length": (
        None,
        {
            "short": ("is shorter", "ends much higher"),
            "medium": ("is of middle length", "is neither long nor short"),
            "long": ("is longer", "reaches further down"),
        },
    ),
    "neck": (
        None,
        {
            "round": ("has a rounded neckline", "is closed at the throat"),
            "deep": ("has a plunging neckline", "is cut low in front"),
            "square": ("has a boxy neckline", "has a straight cut neckline"),
        },
    ),
    "detail": (
        None,
        {
            "none": ("has nothing extra on it", "is simpler"),
            "belt": ("has a belt", "is tied around the waist"),
            "pocket": ("has a pocket on the chest", "has a small patch on one side"),
            "print": ("has a graphic in the middle", "has a round picture on the front"),
        },
    ),
}


def describe(rng: np.random.Generator, garment: Garment) -> str:
    """A generic caption, as CLIP is pre-trained on: "a photo of a red dress", now and then with more said."""
    words = [garment.colour]
    if garment.pattern != "plain" and rng.random() < 0.6:
        words.insert(0, garment.pattern)
        if rng.random() < 0.5:
            words.append(f"and {garment.accent}")
    for name in ("sleeves", "length", "neck", "detail"):
        word = _GENERIC[name][getattr(garment, name)]
        if word and rng.random() < 0.4:
            words.insert(0, word)
    return f"a photo of a {' '.join(words)} {_NOUN[garment.category]}"


def compare(rng: np.random.Generator, reference: Garment, target: Garment) -> tuple[str, str]:
    """Two modification texts by two people: each sees the differences in another order and words them in another way.

    Each text names at most three differences, so one alone may leave something out.
    """
    first = second = _modification(rng, reference, target)
    while second == first:
        second = _modification(rng, reference, target)
    return first, second


def _modification(rng: np.random.Generator, reference: Garment, target: Garment) -> str:
    names = [str(n) for n in rng.permutation(np.array(differences(reference, target)))][:3]
    return _join(rng, [_phrase(rng, name, getattr(target, name)) for name in names])


def _phrase(rng: np.random.Generator, name: str, value: str) -> str:
    templates, by_value = _CHANGE[name]
    phrase = _pick(rng, by_value[value] if by_value is not None else templates or ())
    return phrase.format(x=value)


def _join(rng: np.random.Generator, phrases: list[str]) -> str:
    if len(phrases) == 1:
        return phrases[0]
    link = _pick(rng, (" and ", ", ", " but "))
    return ", ".join(phrases[:-1]) + link + phrases[-1]
