"""Whether the winner of a sweep is better than the default: both trained with several seeds, and
then, once, val.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scipy.stats import t as student

from raycd.config import Config
from raycd.evaluate import Metric
from tune.journal import Journal
from tune.space import Space, Values
from tune.trainings import Place, train_all
from tune.trial import Tables

DEFAULT, WINNER = "default", "winner"
_ROUNDING = 1e-9  # below it, differences of recalls are equal
PLACE = Place("evaluation", "val", "evaluation on val")


def compare(
    tables: Tables, space: Space, winner: Values, metric: Metric, journal: Journal
) -> dict[str, Any]:
    """Train both with the seeds from `seed` on, `tune.seeds` of them, and evaluate on val.

    Returns `summary`'s mapping; where the default is the winner, it stands on both sides.
    """
    config = space.config
    variants = {DEFAULT: space.default(), WINNER: winner}
    if variants[DEFAULT] == winner:
        del variants[WINNER]
    seeds = range(config.seed, config.seed + config.tune.seeds)
    found = train_all(PLACE, variants, seeds, tables, space, metric, journal)
    rows = {
        name: [training["recalls"] for training in trainings] for name, trainings in found.items()
    }
    return summary(rows[DEFAULT], rows.get(WINNER), [metric, *_others(config, metric)])


def summary(
    default: Sequence[Mapping[str, Any]],
    winner: Sequence[Mapping[str, Any]] | None,
    metrics: Sequence[Metric],
) -> dict[str, Any]:
    """Means of both and the paired differences, seed by seed, for each metric; the first one
    decides.

    Args:
        default, winner: Recalls (category -> "recall@k" -> fraction) of each seed. No winner: the
        default itself.
    Returns:
        {"seeds", "default_won", "better": whether the interval lies above 0, "metrics": name ->
        {"default", "winner", "difference", "low", "high"}}, fractions; low and high are the ends of
        the 95% interval of the mean difference (Student's t), None where the differences do not
        spread.
    """
    rows: dict[str, dict[str, Any]] = {}
    for metric in metrics:
        both = [[metric.of(recalls) for recalls in side] for side in (default, winner or default)]
        difference, margin = paired([b - a for a, b in zip(*both, strict=True)])
        rows[str(metric)] = {
            DEFAULT: statistics.fmean(both[0]),
            WINNER: statistics.fmean(both[1]),
            "difference": difference,
            "low": None if margin is None else difference - margin,
            "high": None if margin is None else difference + margin,
        }
    low = rows[str(metrics[0])]["low"]
    better = low is not None and low > 0
    return {"seeds": len(default), "default_won": winner is None, "better": better, "metrics": rows}


def paired(differences: Sequence[float]) -> tuple[float, float | None]:
    """Mean of paired differences and half the width of its 95% interval (Student's t, n - 1 degrees
    of freedom).

    The width is None where all are equal: so few seeds have not shown how far they spread.
    """
    count, mean = len(differences), statistics.fmean(differences)
    spread = statistics.stdev(differences) / math.sqrt(count)
    return mean, float(student.ppf(0.975, count - 1)) * spread if spread > _ROUNDING else None


def verdict(result: Mapping[str, Any]) -> str:
    """One sentence for people."""
    name, row = next(iter(result["metrics"].items()))
    numbers = f"{100 * row['difference']:+.2f} points of {name} on val"
    if row["low"] is None:
        numbers += f" with each of {result['seeds']} seeds, too few for an interval: give more --tune.seeds"
    else:
        numbers += f"{interval(row)}, 95% interval over {result['seeds']} seeds"
    if result["better"]:
        return f"the winner is better than the default: {numbers}"
    if result["default_won"]:
        return f"no trial was better than the default settings: {100 * row['default']:.2f}% {name} on val"
    if row["low"] is None and row["difference"] > 0:
        return f"the winner may be better than the default: {numbers}"
    return f"the winner is no better than the default: {numbers}"


def interval(row: Mapping[str, Any]) -> str:
    """The interval of a metric in points, after a space; empty where there is none."""
    return "" if row["low"] is None else f" [{100 * row['low']:+.2f}, {100 * row['high']:+.2f}]"


def _others(config: Config, metric: Metric) -> list[Metric]:
    return [other for other in (Metric(k=k) for k in config.evaluate.ks) if other != metric]
