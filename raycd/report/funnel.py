"""The counts of the mining as a table: how many candidates each filter left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

STEPS = ("candidates", "after_similarity", "after_s_max", "after_alpha")


@dataclass(frozen=True)
class Funnel:
    """Steps in order, and for each part of the data how many each step left.

    A cell has the number, and its share of the first step's.
    """

    steps: list[str]
    rows: list[tuple[str, list[tuple[int, float]]]]


def funnel(counts: Mapping[str, Any]) -> Funnel:
    """Return `raycd.mine.Counts` as a row for each category and side, and a total."""
    steps = [step for step in STEPS if step in counts]
    groups = {f"{group['side']} · {group['category']}": group for group in counts.get("groups", ())}
    parts = {**groups, "total": counts} if steps else {}
    rows = [
        (name, [(part[step], _share(part[step], part[steps[0]])) for step in steps])
        for name, part in parts.items()
    ]
    return Funnel([step.replace("after_", "after ") for step in steps], rows)


def facts(counts: Mapping[str, Any]) -> list[tuple[str, int | float]]:
    """Return the numbers beside the steps, e.g. ("images without substitute", 12)."""
    return [
        (name.replace("_", " "), value)
        for name, value in counts.items()
        if isinstance(value, int | float) and name not in STEPS
    ]


def leaves(counts: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> list[tuple[Any, Any]]:
    """Return path and value of everything that is not a mapping, in order, but for None."""
    found: list[tuple[Any, Any]] = []
    for name, value in counts.items():
        path = (*prefix, str(name))
        if isinstance(value, Mapping):
            found += leaves(value, path)
        elif value is not None:
            found.append((path, value))
    return found


def _share(count: int, first: int) -> float:
    return min(1.0, count / first) if first else 0.0
