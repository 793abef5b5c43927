"""Attributes as numbers, and which attributes triplets are composed from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raycd.config import ComposeConfig
from raycd.errors import DataError

UNKNOWN = -1
_MANY, _OWN = 10, 0.9  # values, and the share of images that have them alone, which is no chance


@dataclass(frozen=True)
class Coded:
    """The values of N images in A attributes."""

    names: list[str]
    """The attributes."""
    words: list[list[str]]
    """Of each attribute its values, by their numbers."""
    code_NA: NDArray[np.int32]
    """The number of each image's value; UNKNOWN where it has none."""
    left_out: dict[str, str]
    """Attributes that are not composed from, and why."""


def encode(
    attributes: Sequence[Mapping[str, str]], settings: ComposeConfig, *, title: str
) -> Coded:
    """Return the attributes of images as numbers. Capitals and spaces make no other value.

    Raises:
        DataError: `compose.attributes` names one that no image has, or no attribute is left that
            has two values.
    """
    names = list(dict.fromkeys(name for own in attributes for name in own))
    if absent := [name for name in settings.attributes if name not in names]:
        raise DataError(
            "compose.attributes names what no image has",
            got=", ".join(absent),
            expected=f"some of: {', '.join(names) or '(there are no attributes)'}",
        )
    names = settings.attributes or names
    columns = {name: _numbered(own.get(name, "") for own in attributes) for name in names}
    known = {name: int((column_N != UNKNOWN).sum()) for name, (_, column_N) in columns.items()}
    left_out: dict[str, str] = {}
    kept: list[str] = []
    for name in sorted(names, key=lambda name: -known[name]):  # of two alike the fuller stays
        _, column_N = columns[name]
        reason = _reason(name, column_N, settings, title)
        reason = reason or next(
            (
                f"it says the same as {other}"
                for other in kept
                if name not in settings.attributes and _alike(column_N, columns[other][1])
            ),
            "",
        )
        if reason:
            left_out[name] = reason
        else:
            kept.append(name)
    kept.sort(key=names.index)
    if not kept:
        raise DataError(
            "there is no attribute to compose triplets from",
            got="; ".join(f"{name}: {why}" for name, why in left_out.items()) or "no attributes",
            expected="an attribute of two values or more, such as a colour",
            do="add columns to the gallery table, name some in compose.attributes, or give "
            "--compose.when never",
        )
    words = [list(columns[name][0]) for name in kept]
    return Coded(kept, words, np.stack([columns[name][1] for name in kept], axis=1), left_out)


def _numbered(values: Iterable[str]) -> tuple[dict[str, int], NDArray[np.int32]]:
    """Return the number of each distinct value, and the numbers (N,)."""
    numbers: dict[str, int] = {}
    normal = (" ".join(value.lower().split()) for value in values)
    codes = [numbers.setdefault(value, len(numbers)) if value else UNKNOWN for value in normal]
    return numbers, np.array(codes, np.int32)


def _alike(one_N: NDArray[np.int32], other_N: NDArray[np.int32]) -> bool:
    """Tell whether the values of an attribute name those of another, as in a second language.

    Such a pair would be two differences wherever there is one.
    """
    known_N = one_N != UNKNOWN
    if (other_N[known_N] == UNKNOWN).any():
        return False
    pairs_2P = np.unique(np.stack([one_N[known_N], other_N[known_N]]), axis=1)
    seen_twice = known_N.sum() >= 2 * pairs_2P.shape[1]  # on average; else it may be chance
    return seen_twice and all(len(np.unique(side)) == pairs_2P.shape[1] for side in pairs_2P)


def _reason(name: str, column_N: NDArray[np.int32], settings: ComposeConfig, title: str) -> str:
    images_V = np.bincount(column_N[column_N != UNKNOWN])
    values, known = len(images_V), int(images_V.sum())
    if name in settings.attributes:
        return "" if values > 1 else "it has one value"
    if name == title:
        return "it is the title"
    if values > settings.most_values:
        return f"it has {values:,} values, compose.most_values is {settings.most_values:,}"
    if values < 2:
        return "it has one value"
    is_own = values >= _MANY and (images_V == 1).sum() >= _OWN * known
    return "nearly every image has a value of its own" if is_own else ""
