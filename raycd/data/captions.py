"""How the captions of a triplet become one text: four ways in training, one in evaluation.

A caption loses the characters `.?, ` at both ends; empty ones are left out; a text begins with a capital letter.
(After Clip4Cir; its `capitalize()` also lowers the other letters, which CLIP's tokenizer does anyway.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def evaluation_text(captions: Sequence[str]) -> str:
    """All captions in the annotated order, "C1 and c2"; "" where all are empty."""
    return _join(_clean(captions))


def training_texts(captions: Sequence[str]) -> tuple[str, str, str, str]:
    """The four texts of which training draws one: "C1 and c2", "C2 and c1", "C1", "C2".

    One caption gives four times the same; of more than two: all in order, all reversed, the first, the last. Where all
    are empty, so are the texts.
    """
    clean = _clean(captions)
    return _join(clean), _join(clean[::-1]), _join(clean[:1]), _join(clean[-1:])


def example_texts(annotated: Sequence[Sequence[str]], seed: int, *, count: int = 12, longest: int = 60) -> list[str]:
    """At most `count` distinct texts drawn from the captions of many triplets, to show people what they may ask for.

    Each is the first caption alone, as training shows it (two in one text say the same thing twice), of at most
    `longest` characters.
    """
    texts = dict.fromkeys(training_texts(captions)[2] for captions in annotated)
    short = [text for text in texts if 0 < len(text) <= longest]
    return [short[i] for i in np.random.default_rng([seed, 13]).permutation(len(short))[:count]]


def _clean(captions: Sequence[str]) -> list[str]:
    return [clean for clean in (caption.strip(".?, ") for caption in captions) if clean]


def _join(clean: Sequence[str]) -> str:
    text = " and ".join(clean)
    return text[:1].upper() + text[1:]
