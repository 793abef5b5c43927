"""Filters as expressions of Milvus, and what the entities of a collection have for them.

No text of a user is ever in an expression: ids, categories, names and values are there as
hexadecimal digits of their hashes. So none has to be escaped, whatever it contains (how a server
reads quotes, backslashes and control characters in a literal or in a path of JSON differs between
versions). A word has no two meanings with 96 bits: among a billion of them that chance is 1e-11.

Only what Milvus 2.4 and later, and Milvus Lite, have is used: `array_contains_any`, comparisons of
a number in JSON, `in`, `not` and `and`. A comparison with a number that an entity lacks is false in
both, and stands under no `not`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from raycd.gallery import conditions
from raycd.gallery.conditions import Conditions

ALL = "version > 0"  # all but the marker of the collection, whose version is 0
_SIGNS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_LARGEST = float(np.finfo(np.float64).max)  # JSON has no infinity, which 1e999 is read as


def _hash(text: str, size: int = 12) -> str:
    data = text.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=size).hexdigest()


def key(image_id: str) -> str:
    """Return the primary key of an image: 32 digits, evenly distributed."""
    return _hash(image_id, 16)


def category_tag(name: str) -> str:
    """Return the tag of images in a category."""
    return f"c{_hash(name)}"


def attribute_tag(name: str, value: str | None = None) -> str:
    """Return the tag of images with an attribute, or with this value of it."""
    return f"a{_hash(name)}" if value is None else f"v{_hash(f'{len(name)} {name}{value}')}"


def number_tag(name: str) -> str:
    """Return the tag of images that have a number as an attribute."""
    return f"n{_hash(name)}"


def tags(categories: Iterable[str], attributes: Mapping[str, str]) -> list[str]:
    """Return the tags of an image, each once; those that filters need come first."""
    found = [category_tag(name) for name in categories]
    found += [attribute_tag(name, value) for name, value in attributes.items()]
    found += [attribute_tag(name) for name in attributes]
    found += [number_tag(name) for name, value in attributes.items() if conditions.is_number(value)]
    return list(dict.fromkeys(found))


def numbers(attributes: Mapping[str, str]) -> dict[str, float]:
    """Return the numbers among the attributes, by the hashes of their names."""
    return {
        _hash(name): float(np.clip(conditions.number(value), -_LARGEST, _LARGEST))
        for name, value in attributes.items()
        if conditions.is_number(value)
    }


def having(tag: str) -> str:
    """Return the expression of images with a tag."""
    return _any([tag])


def expression(
    categories: Sequence[str], wanted: Conditions, among: Sequence[str] = ()
) -> str | None:
    """Return the expression of a filter; None where no image can pass it."""
    parts = [ALL]
    if categories:
        parts.append(_any(map(category_tag, categories)))
    for name, condition in wanted:
        if condition.in_ is not None:
            if not condition.in_:
                return None
            parts.append(_any(attribute_tag(name, value) for value in condition.in_))
        if condition.not_:
            parts.append(f"not {_any(attribute_tag(name, value) for value in condition.not_)}")
        for word, sign in _SIGNS.items():
            if (bound := getattr(condition, word)) is not None:
                parts.append(f'numbers["{_hash(name)}"] {sign} {float(bound)!r}')
    if among:
        parts.append(keys(among))
    return " and ".join(parts)


def keys(image_ids: Iterable[str]) -> str:
    """Return the expression of some images."""
    return f"key in [{_list(map(key, image_ids))}]"


def _any(tags: Iterable[str]) -> str:
    return f"array_contains_any(tags, [{_list(tags)}])"


def _list(words: Iterable[str]) -> str:
    return ", ".join(f'"{word}"' for word in dict.fromkeys(words))
