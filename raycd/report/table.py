"""The table of recall: its cells, the best of them, its text for terminals, and verdicts on it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LABELS = {
    "zero_shot": "zero-shot CLIP",
    "adapted": "adapted CLIP",
    "fine_tuned": "fine-tuned CLIP",
    "clip_cd": "CLIP-CD",
}
NONE = "–"


@dataclass(frozen=True)
class RecallCell:
    """A recall in per cent with two decimals, and whether no other variant has a higher one."""

    text: str
    best: bool


@dataclass(frozen=True)
class Recall:
    """Recall of variants by categories and ranks."""

    categories: list[str]  # "average" last
    ranks: list[str]  # ["R@10", "R@50"]
    rows: list[tuple[str, list[RecallCell]]]  # (variant, its cells: categories x ranks)


def recall_cells(metrics: Mapping[str, Any]) -> Recall:
    """Return the table of `metrics["variants"]`: variant -> category -> "recall@k" -> fraction."""
    variants: Mapping[str, Mapping[str, Mapping[str, float | None]]] = metrics.get("variants") or {}
    categories = list(
        dict.fromkeys(c for recalls in variants.values() for c in recalls if c != "average")
    )
    if any("average" in recalls for recalls in variants.values()):
        categories.append("average")
    keys = list(
        dict.fromkeys(k for recalls in variants.values() for cell in recalls.values() for k in cell)
    )
    columns = [(category, key) for category in categories for key in keys]
    texts = {
        name: [percent(recalls.get(category, {}).get(key)) for category, key in columns]
        for name, recalls in variants.items()
    }
    best = [
        max((row[i] for row in texts.values() if row[i] != NONE), key=float, default=NONE)
        for i in range(len(columns))
    ]
    rows = [
        (
            name,
            [
                RecallCell(text, len(texts) > 1 and text == top != NONE)
                for text, top in zip(row, best, strict=True)
            ],
        )
        for name, row in texts.items()
    ]
    return Recall(categories, [_short(key) for key in keys], rows)


def _short(measure: str) -> str:
    """Return the name of a measure for a column: R@10, Rs@1 inside a subset, mAP@5."""
    for long, short in (("recall@", "R@"), ("recall_subset@", "Rs@"), ("map@", "mAP@")):
        measure = measure.replace(long, short)
    return measure


def gains(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return (from, to, percentage points) of neighbouring variants' average at the first rank."""
    recall = recall_cells(metrics)
    if "average" not in recall.categories:
        return []
    column = (len(recall.categories) - 1) * len(recall.ranks)
    averages = [
        (name, cells[column].text) for name, cells in recall.rows if cells[column].text != NONE
    ]
    return [
        (label(before), label(after), f"{float(new) - float(old):+.2f}")
        for (before, old), (after, new) in itertools.pairwise(averages)
    ]


def verdicts(metrics: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a result: a variant that is worse than one before it, or chance.

    The average recall at the first rank is compared. The last variant has failed where images drawn
    at random from the galleries would be as good.
    """
    variants: Mapping[str, Mapping[str, Mapping[str, float | None]]] = metrics.get("variants") or {}
    key = next((key for recalls in variants.values() for key in recalls.get("average", {})), "")
    found = {
        name: value
        for name, cells in variants.items()
        if (value := cells.get("average", {}).get(key)) is not None
    }
    if not found:
        return []
    rank, (last, best) = key.replace("recall@", "R@"), list(found.items())[-1]
    said = []
    chance = _chance(metrics, key)
    if chance is not None and best <= chance < 1:
        said.append(
            f"{label(last)} has failed: {rank} {percent(best)} is no better than images drawn "
            f"at random ({percent(chance)})"
        )
    said += [
        f"{label(after)} is worse than {label(before)}: {rank} {percent(found[after])} "
        f"instead of {percent(found[before])}"
        for before, after in itertools.combinations(found, 2)
        if found[after] < found[before]
    ]
    return said


def _chance(metrics: Mapping[str, Any], key: str) -> float | None:
    """Return the mean recall of images drawn at random; None for galleries of unknown size."""
    sizes: list[int] = list(((metrics.get("counts") or {}).get("gallery") or {}).values())
    k = key.rpartition("@")[2]
    if not k.isdigit() or not sizes or not all(sizes):
        return None
    return sum(min(1.0, int(k) / size) for size in sizes) / len(sizes)


def final_table(metrics: Mapping[str, Any]) -> str:
    """Return `recall_table` below its verdicts, or that there is none."""
    table = recall_table(metrics) or "recall was not measured: there are no val triplets"
    return "\n".join([*(f"warning: {verdict}" for verdict in verdicts(metrics)), table])


def recall_table(metrics: Mapping[str, Any]) -> str:
    """Return the table as plain text, recall in per cent; empty without variants.

                     dress           average
    recall, %         R@10    R@50    R@10    R@50
    zero-shot CLIP   28.10   45.00   28.10   45.00
    """
    recall = recall_cells(metrics)
    if not recall.rows:
        return ""
    first = max(len(label(name)) for name in ("recall, %", *(name for name, _ in recall.rows))) + 1
    # A group is as wide as its ranks or its name, whichever is wider; its cells share the room.
    widths = [
        max(8, -(-(len(category) + 3) // len(recall.ranks))) for category in recall.categories
    ]
    cell_widths = [width for width in widths for _ in recall.ranks]
    groups = " " * first + "".join(
        f"   {category}".ljust(width * len(recall.ranks))
        for category, width in zip(recall.categories, widths, strict=True)
    )
    head = "recall, %".ljust(first) + _right(recall.ranks * len(recall.categories), cell_widths)
    lines = [
        label(name).ljust(first) + _right([cell.text for cell in cells], cell_widths)
        for name, cells in recall.rows
    ]
    return "\n".join(line.rstrip() for line in (groups, head, *lines))


def label(variant: str) -> str:
    """Return the name of a variant for readers."""
    return LABELS.get(variant, variant)


def percent(fraction: float | None) -> str:
    """Format a fraction: 0.41823 -> 41.82; a dash for what was not measured."""
    return NONE if fraction is None or fraction != fraction else f"{100 * fraction:.2f}"


def _right(texts: list[str], widths: list[int]) -> str:
    return "".join(text.rjust(width) for text, width in zip(texts, widths, strict=True))
