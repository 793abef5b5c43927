"""What the value of an attribute must be for an image to be found.

Values are texts; a range compares those that are numbers, in decimal notation.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raycd.filters import Condition
from raycd.index.structure import Mask

# Of each text it reads a digit once: clients write the values, and there may be many
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
COMPARED: dict[str, Callable[[Any, Any], Any]] = {
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}

Wanted = Mapping[str, Sequence[str] | Condition]
Conditions = tuple[tuple[str, Condition], ...]


def of(wanted: Wanted) -> Conditions:
    """Return the condition of each attribute; a list of values is `in`. Equal filters are equal."""
    return tuple((name, _condition(wanted[name])) for name in sorted(wanted))


def _condition(given: Sequence[str] | Condition) -> Condition:
    if isinstance(given, Condition):
        in_, not_ = given.in_, given.not_
    else:
        in_, not_, given = tuple(given), (), Condition(in_=())
    ordered = None if in_ is None else tuple(sorted(set(in_)))
    return given.model_copy(update={"in_": ordered, "not_": tuple(sorted(set(not_)))})


def number(text: str) -> float:
    """Return the number that a value is; NaN where it is none."""
    return float(text) if is_number(text) else np.nan


def is_number(text: str) -> bool:
    """Return whether a value is a number."""
    return _NUMBER.fullmatch(text) is not None


def ranges(values: Mapping[str, Iterable[str]]) -> dict[str, tuple[float, float]]:
    """Return the smallest and the largest number of each attribute that has numbers."""
    found = {}
    for name, own in values.items():
        numbers = [one for one in map(number, own) if math.isfinite(one)]
        if numbers:
            found[name] = (min(numbers), max(numbers))
    return found


def holds(condition: Condition, value: str | None) -> bool:
    """Tell whether an image with this value is found; None: it has no such attribute."""
    if value is None:
        return condition.holds_without
    if value in condition.not_ or (condition.in_ is not None and value not in condition.in_):
        return False
    # Without an array: it is asked for each image that was added
    return not condition.has_range or bool(_in_range(condition, number(value), True))


def _in_range(condition: Condition, numbers: Any, right: Any) -> Any:
    """Return which of `right` are in the range, too; a comparison with NaN is false."""
    for name, compared in COMPARED.items():
        if (bound := getattr(condition, name)) is not None:
            right = right & compared(numbers, bound)
    return right


def among(condition: Condition, values: Sequence[str], number_N: NDArray[np.float64]) -> Mask:
    """Return which of some values (N,) are right; `number_N` are the numbers that they are."""
    right = np.ones(len(values), np.bool_)
    if condition.in_ is not None:
        wanted = frozenset(condition.in_)
        right &= np.fromiter((value in wanted for value in values), np.bool_, len(values))
    if condition.not_:
        refused = frozenset(condition.not_)
        right &= np.fromiter((value not in refused for value in values), np.bool_, len(values))
    found: Mask = _in_range(condition, number_N, right)
    return found
