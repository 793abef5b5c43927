"""How people speak of garments, in two languages.

`describe` writes the generic captions of pre-training ("a photo of a red dress"), `compare` the
modification texts of triplets ("has long sleeves and is blue"). The paper's stage 1 closes the gap
between the two (3.2.1).
"""

from __future__ import annotations

from importlib import resources

import numpy as np
import yaml

from raycd.data.demo.garments import Garment, differences, pick

_NOUN = {"dress": "dress", "shirt": "shirt", "toptee": "top"}
_GENERIC = {  # the language of pre-training
    "sleeves": {"none": "sleeveless", "short": "short sleeve", "long": "long sleeve"},
    "length": {"short": "mini", "medium": "regular", "long": "maxi"},
    "neck": {"round": "crew neck", "deep": "v neck", "square": "square neck"},
    "detail": {"none": "", "belt": "belted", "pocket": "pocket", "print": "logo"},
}
_CHANGE = yaml.safe_load(resources.files(__package__).joinpath("wording.yaml").read_bytes())
"""The language of triplets: {new} is the new value."""


def describe(rng: np.random.Generator, garment: Garment) -> str:
    """Write a generic caption, as CLIP is pre-trained on: "a photo of a red dress"."""
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
    """Write two modification texts that order and word the differences in their own way.

    Each text names at most three differences, so one alone may leave something out.
    """
    first = second = _modification(rng, reference, target)
    while second == first:
        second = _modification(rng, reference, target)
    return first, second


def _modification(rng: np.random.Generator, reference: Garment, target: Garment) -> str:
    names = [str(n) for n in rng.permutation(np.array(differences(reference, target)))][:3]
    return _join(rng, [phrase(rng, name, getattr(target, name)) for name in names])


def phrase(rng: np.random.Generator, name: str, value: str) -> str:
    """Say that an attribute is to have this value: "has long sleeves"."""
    spoken = _CHANGE["attributes"][name]
    phrase = pick(rng, tuple(spoken["values"][value] if "values" in spoken else spoken["phrases"]))
    return phrase.format(new=value)


def _join(rng: np.random.Generator, phrases: list[str]) -> str:
    if len(phrases) == 1:
        return phrases[0]
    link = pick(rng, tuple(_CHANGE["links"]))
    return ", ".join(phrases[:-1]) + link + phrases[-1]
