"""The end of a sweep: the best trials and the default trained whole, and what they are then worth.

A trial is short, and what leads early need not lead in the end. So its value only chooses the
finalists; these are trained for `stage2.epochs` with `tune.final_seeds` seeds and judged by their
mean, still on the selection split. Then, once, the winner and the default are compared on val.
Every training is a Ray task, kept in the sweep's journal and not done again.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray

from raycd.compare import Answers
from raycd.config import Config
from raycd.errors import RunError, brief
from raycd.evaluate import Metric
from raycd.progress import Bar, say
from tune.journal import Journal, Record, ranked
from tune.runner import trial_resources
from tune.space import Space, Values
from tune.trial import Tables, evaluated, result, set_threads

DEFAULT, WINNER = "default", "winner"


class Round(NamedTuple):
    """Trainings: their folder in the journal, the split they are measured on, their name."""

    folder: str
    split: str
    title: str
    wanted: str
    """What is read of a training: one that an earlier version kept without it is trained again."""


FINALS = Round("finals", "selection", "finals", "selection")
ON_VAL = Round("evaluation", "val", "evaluation on val", "ranks")


def train_all(
    of: Round,
    variants: Mapping[str, Values],
    seeds: Sequence[int],
    tables: Tables,
    space: Space,
    metric: Metric,
    journal: Journal,
) -> dict[str, list[dict[str, Any] | None]]:
    """Train each variant with each seed: name -> what `evaluated` gave, in the seeds' order.

    None where a training failed, which is told, and tried again when the sweep is run again.
    """
    found: dict[tuple[str, int], dict[str, Any] | None] = {}
    todo = {}
    shared = ray.put((tables, metric, of.split))
    resources = trial_resources(space.config)
    task = ray.remote(num_cpus=resources["cpu"], num_gpus=resources.get("gpu", 0), max_retries=2)(
        _evaluated
    )
    with Bar(of.title, total=len(variants) * len(seeds), unit="trainings") as bar:
        for seed in seeds:
            for name, settings in variants.items():
                known = journal.run.read_json(f"{of.folder}/{name}-{seed}.json")
                if known is not None and known["settings"] == settings and of.wanted in known:
                    found[name, seed] = known
                    bar.advance()
                else:
                    seeded = space.configured(settings).model_copy(update={"seed": seed})
                    todo[task.remote(shared, seeded)] = (name, seed, settings)
        while todo:
            [done], _ = ray.wait(list(todo))
            name, seed, settings = todo.pop(done)
            given = result(done)
            if "error" in given:
                say(f"warning: {of.title}: {name}, seed {seed}, failed: {given['error']}")
                found[name, seed] = None
            else:
                made = found[name, seed] = {"settings": settings, "seed": seed, **given}
                journal.run.write_json(f"{of.folder}/{name}-{seed}.json", made)
            bar.advance()
    return {name: [found[name, seed] for seed in seeds] for name in variants}


def _evaluated(shared: tuple[Tables, Metric, str], config: Config) -> dict[str, Any]:
    tables, metric, split = shared
    set_threads(config)
    try:
        return evaluated(tables, config, metric, split)
    except Exception as error:  # its loss exploded, a GPU is full
        return {"error": brief(error)}


@dataclass(frozen=True)
class Finalist:
    """Settings that were trained whole."""

    settings: Values
    value: float
    """Their mean on the selection split."""
    number: int | None
    """The trial's; None: the default settings."""

    @property
    def name(self) -> str:
        """Return what people read: trial 7."""
        return DEFAULT if self.number is None else f"trial {self.number}"


def finals(
    tables: Tables, space: Space, trials: Sequence[Record], metric: Metric, journal: Journal
) -> list[Finalist]:
    """Train the finalists, and return them, the winner first.

    The default is among them, and wins where another is only as good; who could not be trained
    whole is not. `tables` need no val. Raises RunError where every trial or finalist has failed.
    """
    tune = space.config.tune
    chosen = finalists(space, trials, journal)
    variants = {DEFAULT: space.default()} | {
        f"trial-{trial['number']}": trial["settings"] for trial in chosen
    }
    seeds = range(space.config.seed, space.config.seed + tune.final_seeds)
    rows = train_all(FINALS, variants, seeds, tables, space, metric, journal)
    numbers = [None, *(trial["number"] for trial in chosen)]
    whole = {name: [row for row in rows[name] if row is not None] for name in variants}
    found = [
        Finalist(variants[name], statistics.fmean(row["selection"] for row in whole[name]), number)
        for name, number in zip(variants, numbers, strict=True)
        if len(whole[name]) == len(seeds)
    ]
    if not found:
        raise _failed(f"no finalist could be trained for {space.config.stage2.epochs} epochs")
    return sorted(
        found, key=lambda finalist: -finalist.value
    )  # stable: the default, then the better trial


def _failed(what: str) -> RunError:
    return RunError(
        what,
        got="trainings that failed, as told above",
        do="mend what they say and run the same command again; or start another sweep by "
        "--sweep NAME, with a narrower --space",
    )


def finalists(space: Space, trials: Sequence[Record], journal: Journal) -> list[Record]:
    """Return the best `tune.finalists` trials of different settings, none the default's."""
    best = ranked(trials)
    if not best:
        raise RunError(
            f"all {len(trials)} trials have failed",
            got=trials[-1]["error"] if trials else "no trial",
            do=f"see the errors in {journal.run.path('trials')}; fix the space and start another "
            "by --sweep NAME",
        )
    seen, chosen = [space.default()], []
    for trial in best:
        if trial["settings"] not in seen:
            seen.append(trial["settings"])
            chosen.append(trial)
    return chosen[: space.config.tune.finalists]


def compare(
    tables: Tables, space: Space, winner: Values, metric: Metric, journal: Journal
) -> dict[str, Any]:
    """Train the default and the winner with `tune.seeds` seeds from `seed` on; evaluate on val.

    Returns `summary`'s mapping; where the default is the winner, it stands on both sides. A seed
    with which one of them failed counts for neither; raises RunError where none is left.
    """
    config = space.config
    variants = {DEFAULT: space.default(), WINNER: winner}
    if variants[DEFAULT] == winner:
        del variants[WINNER]
    wanted = range(config.seed, config.seed + config.tune.seeds)
    rows = train_all(ON_VAL, variants, wanted, tables, space, metric, journal)
    by_seed = dict(zip(wanted, zip(*rows.values(), strict=True), strict=True))
    whole = {seed: dict(zip(rows, own, strict=True)) for seed, own in by_seed.items() if all(own)}
    if not whole:
        raise _failed("the winner and the default could not be compared on val")
    seeds = list(whole)
    categories = tables.dataset.triplets_of(ON_VAL.split)["category"].to_pylist()
    answers = {
        name: Answers.of([own[name]["ranks"] for own in whole.values()], categories, seeds)
        for name in variants
    }
    return summary(answers[DEFAULT], answers.get(WINNER), [metric, *_others(config, metric)])


def summary(default: Answers, winner: Answers | None, metrics: Sequence[Metric]) -> dict[str, Any]:
    """Return means of both and their paired differences; the first metric decides.

    Args:
        default, winner: Ranks of val's targets, of the same seeds. No winner: the default itself.
    Returns:
        {"seeds", "queries": their numbers, "default_won", "better": whether the interval lies above
        0, "metrics": name -> {"default", "winner", "difference", "low", "high", "p"}}, fractions;
        low and high are the ends of the 95% interval of the mean difference over seeds and queries
        (`raycd.compare.difference`), None, as p is, where both give the same answers.
    """
    rows: dict[str, dict[str, Any]] = {}
    for metric in metrics:
        found = (winner or default).minus(default, metric)
        assert found is not None  # the seeds are the same
        rows[str(metric)] = {
            DEFAULT: default.spread(metric).mean,
            WINNER: (winner or default).spread(metric).mean,
            "difference": found.mean,
            "low": found.low,
            "high": found.high,
            "p": found.p,
        }
    low = rows[str(metrics[0])]["low"]
    better = low is not None and low > 0
    seeds, queries = default.ranks_SQ.shape
    counts = {"seeds": seeds, "queries": queries}
    return {**counts, "default_won": winner is None, "better": better, "metrics": rows}


def verdict(result: Mapping[str, Any]) -> str:
    """Return the verdict in one sentence."""
    name, row = next(iter(result["metrics"].items()))
    numbers = f"{100 * row['difference']:+.2f} points of {name} on val"
    if row["low"] is None:
        numbers += ", with the same answers to every query"
    else:
        numbers += f"{interval(row)}, 95% interval over {result['seeds']} seeds"
        numbers += f" and {result['queries']:,} queries"
    if result["better"]:
        return f"the winner is better than the default: {numbers}"
    if result["default_won"]:
        value = f"{100 * row['default']:.2f}% {name} on val"
        return f"no trial was better than the default settings: {value}"
    return f"the winner is no better than the default: {numbers}"


def interval(row: Mapping[str, Any]) -> str:
    """Return the interval of a metric in points, after a space; empty where there is none."""
    return "" if row["low"] is None else f" [{100 * row['low']:+.2f}, {100 * row['high']:+.2f}]"


def _others(config: Config, metric: Metric) -> list[Metric]:
    return [other for other in (Metric(k=k) for k in config.evaluate.ks) if other != metric]
