"""What mining says on a terminal and in the report: what was found, left, and what to change."""

from __future__ import annotations

from raycd.config import MineConfig
from raycd.mine import Counts, Searched, Thresholds
from raycd.report.funnel import funnel

ENOUGH = 0.95  # below this recall the pseudo triplets differ too much from those of exact search
NEARLY_ALL = 0.95


def searched_line(found: Searched) -> str:
    """Return the record as one line.

    For example "hnsw, 3 shards of at most 512 MiB, recall 0.987 of the exact neighbours of 1,000
    images".
    """
    parts = "1 shard of" if found["shards"] == 1 else f"{found['shards']:,} shards of at most"
    text = f"{found['kind']}, {parts} {found['worker_mib']:,g} MiB, "
    if found["kind"] == "flat":
        return text + "exact"
    of = f"of the exact neighbours of {found['sample']:,} images"
    return f"{text}recall {found['recall']:.3f} {of}"


def low_recall(found: Searched) -> list[str]:
    """Return a warning with its remedy where the search missed too many neighbours."""
    if found["recall"] >= ENOUGH:
        return []
    setting = {"hnsw": "mine.hnsw_ef", "ivf": "mine.ivf_probes"}[found["kind"]]
    return [
        f"{found['kind']} found {found['recall']:.1%} of the exact neighbours of "
        f"{found['sample']:,} images, less than {ENOUGH:.0%}: raise {setting} and mine again"
    ]


def thresholds_line(mine: MineConfig, found: Thresholds) -> str:
    """Return a line that says which cosines the quantiles are."""
    return (
        f"thresholds as quantiles: mine.eps_low {mine.eps_low:g} is similarity "
        f"{found['eps_low']:g}, mine.eps_high {mine.eps_high:g} is {found['eps_high']:g}, "
        f"mine.alpha {mine.alpha:g} is score {found['alpha']:g}"
    )


def summary(counts: Counts) -> list[str]:
    """Return lines to print: what each constraint left, by category and side and in all."""
    table = funnel(counts)
    rows = [
        ("", table.steps),
        *((name, [f"{n:,}" for n, _ in cells]) for name, cells in table.rows),
    ]
    lines = [f"{name:30}" + "".join(f"{cell:>18}" for cell in row) for name, row in rows]
    without, images = counts["images_without_substitute"], counts["images"]
    return [*lines, f"{without:,} of {images:,} images have no substitute"]


def warnings(counts: Counts, mine: MineConfig) -> list[str]:
    """Return warnings, each with its remedy: settings that leave nothing or nearly everything."""
    now, found = counts["settings"], []
    is_share = mine.thresholds == "quantile"

    def said(name: str, what: str) -> str:
        """Return a threshold as it was set, and what it is where that was a share."""
        share = f"{getattr(mine, name):g}, {what} " if is_share else ""
        return f"mine.{name} {share}{now[name]:g}"

    every, similar = counts["candidates"], counts["after_similarity"]
    few, kept = counts["after_s_max"], counts["after_alpha"]
    low, high = said("eps_low", "similarity"), said("eps_high", "similarity")
    thresholds, alpha = f"{low} to {high}", said("alpha", "score")
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
            f"no score is greater than {alpha}: "
            + ("lower it" if is_share else f"lower it below {counts['best_score']}")
        )
    if similar > NEARLY_ALL * every:
        found.append(
            f"{thresholds} leave {similar / every:.1%} of the candidates, so mine.floor "
            f"{now['floor']} and mine.neighbours {now['neighbours']} decide: "
            "raise mine.eps_low, or lower mine.floor and mine again"
        )
    if kept > NEARLY_ALL * few:
        found.append(
            f"{alpha} leaves {kept / few:.1%} of the pseudo triplets: raise it to filter more"
        )
    if counts["images_cut_short"]:
        found.append(
            f"{counts['images_cut_short']:,} images have fewer than mine.s_max {now['s_max']} "
            f"substitutes because only {now['neighbours']} neighbours were kept, "
            "many above mine.eps_high: raise mine.neighbours and mine again"
        )
    return found
