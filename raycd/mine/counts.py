"""Counts of candidates that each constraint left, as lines to print and warnings with remedies."""

from __future__ import annotations

from typing import TypedDict

NEARLY_ALL = 0.95


class Left(TypedDict):
    """Candidates left after each constraint, in this order."""

    candidates: int
    after_similarity: int
    after_s_max: int
    after_alpha: int


class Group(Left):
    """Candidates left of one category and side."""

    category: str
    side: str


class Counts(Left):
    """The counts of a filter, for its report."""

    groups: list[Group]
    degenerate: int  # make reference and target the same image; counted nowhere else
    known_pairs: int  # give the pair of a triplet of the data set; counted nowhere else
    images: int  # that the triplets name (once for each pool)
    images_without_substitute: int  # whose substitute set (eq. 9) is empty
    images_cut_short: int  # have fewer than s_max because only S neighbours were kept
    best_score: float | None  # among the candidates within thresholds and s_max
    settings: dict[str, float | int]  # the thresholds; neighbours (S) and floor of the tables


def summary(counts: Counts) -> list[str]:
    """Return lines to print: what each constraint left, by category and side and in all."""
    rows: list[tuple[str, Left]] = [
        (f"{group['category']} {group['side']}", group) for group in counts["groups"]
    ]
    cells: list[tuple[str, ...]] = [("", "candidates", "similar", "s_max", "alpha")]
    for name, left in (*rows, ("all", counts)):
        similar, few, kept = left["after_similarity"], left["after_s_max"], left["after_alpha"]
        cells.append((name, *(f"{n:,}" for n in (left["candidates"], similar, few, kept))))
    lines = [f"{name:30}" + "".join(f"{cell:>13}" for cell in row) for name, *row in cells]
    without, images = counts["images_without_substitute"], counts["images"]
    return [*lines, f"{without:,} of {images:,} images have no substitute"]


def warnings(counts: Counts) -> list[str]:
    """Return warnings, each with its remedy: settings that leave nothing or nearly everything."""
    now, found = counts["settings"], []
    every, similar = counts["candidates"], counts["after_similarity"]
    few, kept = counts["after_s_max"], counts["after_alpha"]
    thresholds = f"mine.eps_low {now['eps_low']} to mine.eps_high {now['eps_high']}"
    if every == 0 and counts["images"]:
        found.append(
            f"no image has a neighbour at similarity {now['floor']} or above: "
            "lower mine.floor and mine again"
        )
    elif similar == 0:
        found.append(
            f"no substitute lies within {thresholds}: lower mine.eps_low or raise mine.eps_high"
        )
    elif few and kept == 0:
        found.append(
            f"no score is greater than mine.alpha {now['alpha']}: "
            f"lower it below {counts['best_score']}"
        )
    if similar > NEARLY_ALL * every:
        found.append(
            f"{thresholds} leave {similar / every:.1%} of the candidates, so mine.floor "
            f"{now['floor']} and mine.neighbours {now['neighbours']} decide: "
            "raise mine.eps_low, or lower mine.floor and mine again"
        )
    if kept > NEARLY_ALL * few:
        found.append(
            f"mine.alpha {now['alpha']} leaves {kept / few:.1%} of the pseudo triplets: "
            "raise it to filter more"
        )
    if counts["images_cut_short"]:
        found.append(
            f"{counts['images_cut_short']:,} images have fewer than mine.s_max {now['s_max']} "
            f"substitutes because only {now['neighbours']} neighbours were kept, "
            "many above mine.eps_high: raise mine.neighbours and mine again"
        )
    return found
