"""Whether the winner of a sweep is better than the default: both trained with several seeds, and then, once, val."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from scipy.stats import t as student

from raycd.config import Config
from raycd.evaluate import AVERAGE, Metric
from raycd.progress import Bar
from tune.journal import Journal
from tune.runner import trial_resources
from tune.space import Space, Values
from tune.trial import Tables, evaluated, set_threads

DEFAULT, WINNER = "default", "winner"


def compare(tables: Tables, space: Space, winner: Values, metric: Metric, journal: Journal) -> dict[str, Any]:
    """Train both with the seeds from `seed` on, `tune.seeds` of them, and evaluate on val.

    What is done is kept in the journal's `evaluation/`, and not done again. Returns `summary`'s mapping.
    """
    config = space.config
    variants = {DEFAULT: space.default(), WINNER: dict(winner)}
    if variants[DEFAULT] == variants[WINNER]:
        del variants[WINNER]
    seeds = range(config.seed, config.seed + config.tune.seeds)
    found: dict[tuple[str, int], dict[str, Any]] = {}
    todo = {}
    shared = ray.put((tables, metric))
    resources = trial_resources(config)
    task = ray.remote(num_cpus=resources["cpu"], num_gpus=resources.get("gpu", 0), max_retries=2)(_evaluated)
    with Bar("evaluation on val", total=len(variants) * len(seeds), unit="trainings") as bar:
        for seed in seeds:
            for name, settings in variants.items():
                known = journal.run.read_json(f"evaluation/{name}-{seed}.json")
                if known is not None and known["settings"] == settings:
                    found[name, seed] = known
                    bar.advance()
                else:
                    seeded = space.configured(settings).model_copy(update={"seed": seed})
                    todo[task.remote(shared, seeded)] = (name, seed, settings)
        while todo:
            [done], _ = ray.wait(list(todo))
            name, seed, settings = todo.pop(done)
            found[name, seed] = {"settings": settings, "seed": seed, **ray.get(done)}
            journal.run.write_json(f"evaluation/{name}-{seed}.json", found[name, seed])
            bar.advance()
    rows = {name: [found[name, seed]["recalls"] for seed in seeds] for name in variants}
    return summary(rows[DEFAULT], rows.get(WINNER, rows[DEFAULT]), [str(metric), *_others(config, metric)])


def summary(
    default: Sequence[Mapping[str, Any]], winner: Sequence[Mapping[str, Any]], metrics: Sequence[str]
) -> dict[str, Any]:
    """Means of both and the paired differences, seed by seed, for each metric; the first one decides.

    Args:
        default, winner: Recalls (category -> "recall@k" -> fraction) of each seed.
    Returns:
        {"seeds", "better": whether the interval lies above 0, "metrics": name -> {"default", "winner", "difference",
        "low", "high"}}, fractions; low and high are the ends of the 95% interval of the mean difference (Student's t).
    """
    rows = {}
    for name in metrics:
        category, _, measure = name.rpartition("/")
        both = [[recalls[category or AVERAGE][measure] for recalls in side] for side in (default, winner)]
        difference, margin = paired([b - a for a, b in zip(*both, strict=True)])
        rows[name] = {
            DEFAULT: statistics.fmean(both[0]),
            WINNER: statistics.fmean(both[1]),
            "difference": difference,
            "low": difference - margin,
            "high": difference + margin,
        }
    return {"seeds": len(default), "better": rows[metrics[0]]["low"] > 0, "metrics": rows}


def paired(differences: Sequence[float]) -> tuple[float, float]:
    """Mean of paired differences and half the width of its 95% interval (Student's t, n - 1 degrees of freedom)."""
    count = len(differences)
    spread = statistics.stdev(differences) / math.sqrt(count)
    return statistics.fmean(differences), float(student.ppf(0.975, count - 1)) * spread


def verdict(result: Mapping[str, Any]) -> str:
    """One sentence for people."""
    name, row = next(iter(result["metrics"].items()))
    numbers = (
        f"{100 * row['difference']:+.2f} points of {name} on val "
        f"[{100 * row['low']:+.2f}, {100 * row['high']:+.2f}], 95% interval over {result['seeds']} seeds"
    )
    if result["better"]:
        return f"the winner is better than the default: {numbers}"
    if row["low"] == row["high"] == 0:
        return f"no trial was better than the default settings: {100 * row['default']:.2f}% {name} on val"
    return f"the winner is no better than the default: {numbers}"


def _others(config: Config, metric: Metric) -> list[str]:
    return [f"recall@{k}" for k in config.evaluate.ks if f"recall@{k}" != str(metric)]


def _evaluated(shared: tuple[Tables, Metric], config: Config) -> dict[str, Any]:
    tables, metric = shared
    set_threads(config)
    return evaluated(tables, config, metric)
