"""The garments of the demo data: choices of attributes that `drawing` shows and `wording` names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import numpy as np

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


def pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    """Draw one of the options, all equally likely."""
    return options[int(rng.integers(len(options)))]


def random_garment(rng: np.random.Generator, category: str) -> Garment:
    """Draw a garment of `category`; its accent never equals its colour."""
    garment = Garment(
        category=category, **{name: pick(rng, options) for name, options in CHOICES.items()}
    )
    while garment.accent == garment.colour:
        garment = replace(garment, accent=pick(rng, CHOICES["accent"]))
    return garment


def changed(rng: np.random.Generator, garment: Garment, count: int) -> Garment:
    """Return `garment` with `count` attributes changed, each visibly."""
    result = garment
    names = [name for name in CHOICES if name != "accent"]
    for name in rng.permutation(np.array(names))[:count]:
        current = getattr(result, str(name))
        options = tuple(
            o
            for o in CHOICES[str(name)]
            if o != current and not (name == "colour" and o == result.accent)
        )
        result = replace(result, **{str(name): pick(rng, options)})
    return result


def wears_accent(garment: Garment) -> bool:
    """Return whether the accent is visible."""
    return garment.pattern != "plain" or garment.detail != "none"


def attributes(garment: Garment) -> dict[str, str]:
    """Return the visible attributes of a garment, all but its category."""
    return {
        name: getattr(garment, name)
        for name in CHOICES
        if name != "accent" or wears_accent(garment)
    }


def differences(reference: Garment, target: Garment) -> list[str]:
    """Return the names of attributes that differ visibly (an unused accent is invisible)."""
    names = [
        f.name for f in fields(Garment) if getattr(reference, f.name) != getattr(target, f.name)
    ]
    if "accent" in names and not wears_accent(target):
        names.remove("accent")
    return names
