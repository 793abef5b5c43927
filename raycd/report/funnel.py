"""Nested counts as rows: how many candidates each filter of the mining left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Leaf = tuple[tuple[str, ...], Any]


@dataclass(frozen=True)
class Funnel:
    """Steps in order, and for each part of the data how many each step left with its share of the
    first step.
    """

    steps: list[str]
    rows: list[tuple[str, list[tuple[int | None, float]]]]


def leaves(counts: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> list[Leaf]:
    """Path and value of everything that is not itself a mapping, in order; None values are left
    out.
    """
    found: list[Leaf] = []
    for name, value in counts.items():
        path = (*prefix, str(name))
        if isinstance(value, Mapping):
            found += leaves(value, path)
        elif value is not None:
            found.append((path, value))
    return found


def rows(counts: Mapping[str, Any]) -> Funnel:
    """Counts nested in any order of step, side and category, as a table of parts by steps.

    What `raycd.mine` counts (steps in all, and a list of "groups" with their category and side) is
    one such nesting. A step is "candidates" or begins with "after_"; where no name of a path does,
    its last name is the step. Parts of equal depth are summed in a last row, unless the counts have
    a total of their own.
    """
    cells: dict[str, dict[str, int]] = {}
    parts: list[tuple[str, ...]] = []
    for path, value in leaves(_nested(counts)):
        at = next((i for i, name in enumerate(path) if _is_step(name)), len(path) - 1)
        part = path[:at] + path[at + 1 :]
        parts.append(part)
        cells.setdefault(" · ".join(part) or "all", {})[path[at]] = int(value)
    steps = list(dict.fromkeys(step for row in cells.values() for step in row))
    summable = len({len(part) for part in parts}) == 1 and not {"total", "all"} & {
        n for part in parts for n in part
    }
    if summable and len(cells) > 1:
        cells["total"] = {step: sum(row.get(step, 0) for row in cells.values()) for step in steps}
    return Funnel(
        [step.replace("after_", "after ") for step in steps],
        [
            (name, [_share(row.get(step), row.get(steps[0])) for step in steps])
            for name, row in cells.items()
        ],
    )


def facts(counts: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What `raycd.mine` says beside the steps, e.g. ("images without substitute", 12)."""
    if "groups" not in counts:
        return []
    plain = [
        (name, value)
        for name, value in counts.items()
        if isinstance(value, int | float) and not _is_step(name)
    ]
    return [(name.replace("_", " "), value) for name, value in plain]


def _nested(counts: Mapping[str, Any]) -> Mapping[str, Any]:
    if "groups" not in counts:
        return counts
    groups = {f"{group['side']} · {group['category']}": group for group in counts["groups"]}
    return {
        name: {step: count for step, count in steps.items() if _is_step(step)}
        for name, steps in {**groups, "total": counts}.items()
    }


def _is_step(name: str) -> bool:
    return name == "candidates" or name.startswith("after_")


def _share(count: int | None, first: int | None) -> tuple[int | None, float]:
    return count, min(1.0, count / first) if count and first else 0.0
