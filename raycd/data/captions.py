"""How the captions of a triplet become one text: four ways in training, one in evaluation.

A caption loses the characters `.?, ` at both ends; a text begins with a capital letter. (After
Clip4Cir; its `capitalize()` also lowers the other letters, which CLIP's tokenizer does anyway.)
Empty captions are left out. `Wording` says otherwise: raw texts, as Clip4Cir takes CIRR's, and
empty captions that leave their " and ", as it asks Fashion-IQ's.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raycd.data import json_text

_BLANK = (tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER)


@dataclass(frozen=True)
class Wording:
    """How captions become texts."""

    raw: bool = False
    """As annotated: nothing is stripped, no letter becomes a capital."""
    keep_empty: bool = False
    """An empty caption is joined like the others: " and c2"."""

    def evaluation(self, captions: Sequence[str]) -> str:
        """Return all captions in the annotated order, "C1 and c2"; "" where all are empty."""
        return self._join(self._clean(captions))

    def training(self, captions: Sequence[str]) -> tuple[str, str, str, str]:
        """Return the four texts of which training draws one: "C1 and c2", "C2 and c1", "C1", "C2".

        One caption gives four equal texts; more than two give all in order, all reversed, the first
        and the last. Where all are empty, so are the texts.
        """
        clean = self._clean(captions)
        return (
            self._join(clean),
            self._join(clean[::-1]),
            self._join(clean[:1]),
            self._join(clean[-1:]),
        )

    def _clean(self, captions: Sequence[str]) -> list[str]:
        clean = captions if self.raw else [caption.strip(".?, ") for caption in captions]
        if self.keep_empty and any(clean):
            return list(clean)
        return [caption for caption in clean if caption]

    def _join(self, clean: Sequence[str]) -> str:
        text = " and ".join(clean)
        return text if self.raw else text[:1].upper() + text[1:]


def spelling(text: str) -> str:
    """Return a text as all its spellings are: capitals, spaces and outer `.?, ` are none of it."""
    return " ".join(Wording().evaluation([text]).lower().split())


def training_texts(captions: Sequence[str]) -> tuple[str, str, str, str]:
    """Return the texts of the usual wording in training."""
    return Wording().training(captions)


def listed(text: str) -> list[str] | None:
    """Return the texts of a list that is written in one field, None where the text is not a list.

    It may be JSON (`["is red", "no belt"]`), or what pandas writes for a list (`['is red', 'no
    belt']`) or an array (without commas). Raises ValueError where the text begins like such a list
    and is not one. `[is red]` is a caption with brackets.
    """
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        value = json_text.loads(text)
    except (ValueError, RecursionError):
        value = _python_list(text)
    if isinstance(value, list) and value and all(isinstance(entry, str) for entry in value):
        return value
    if value == [] or text[1:].lstrip()[:1] in ("'", '"'):
        raise ValueError("it begins like a list of texts and is not one")
    return None


def _python_list(text: str) -> list[str] | None:
    """Return the strings of a Python list or a printed array; None where there is anything else."""
    found: list[str] = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.STRING:
                found.append(ast.literal_eval(token.string))
            elif token.type not in _BLANK and token.string not in ("[", ",", "]"):
                return None
        json_text.check_whole(found)
    except (tokenize.TokenError, SyntaxError, ValueError):
        return None
    return found


def example_texts(
    annotated: Sequence[Sequence[str]], seed: int, *, count: int = 12, longest: int = 60
) -> list[str]:
    """Draw at most `count` distinct texts from the captions of many triplets, to show to users.

    Each is the first caption alone, as training shows it (two in one text say the same thing
    twice), of at most `longest` characters.
    """
    texts = dict.fromkeys(training_texts(captions)[2] for captions in annotated)
    short = [text for text in texts if 0 < len(text) <= longest]
    return [short[i] for i in np.random.default_rng([seed, 13]).permutation(len(short))[:count]]
