"""The last round of a sweep: the best few trials and the default, trained whole, before a winner is
named.

A trial is short, and what leads early need not lead in the end. So its value only chooses the
finalists; these are trained for `stage2.epochs` with `tune.final_seeds` seeds and judged by their
mean, still on the selection split.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from raycd.errors import RunError
from raycd.evaluate import Metric
from tune.journal import Journal, Record, ranked
from tune.space import Space, Values
from tune.trainings import Place, train_all
from tune.trial import Tables

PLACE = Place("finals", "selection", "finals")
DEFAULT = "default"


@dataclass(frozen=True)
class Finalist:
    """Settings that were trained whole. `value` is their mean on the selection split, `number` the
    trial's.
    """

    settings: Values
    value: float
    number: int | None
    """None: the default settings."""

    @property
    def name(self) -> str:
        """For people: trial 7."""
        return DEFAULT if self.number is None else f"trial {self.number}"


def finals(
    tables: Tables, space: Space, trials: Sequence[Record], metric: Metric, journal: Journal
) -> list[Finalist]:
    """All finalists, the winner first; the default is always among them, and wins where another is
    only as good.

    `tables` need no val. Raises RunError where every trial has failed.
    """
    tune = space.config.tune
    chosen = finalists(space, trials, journal)
    variants = {DEFAULT: space.default()} | {
        f"trial-{trial['number']}": trial["settings"] for trial in chosen
    }
    seeds = range(space.config.seed, space.config.seed + tune.final_seeds)
    rows = train_all(PLACE, variants, seeds, tables, space, metric, journal)
    numbers = [None, *(trial["number"] for trial in chosen)]
    found = [
        Finalist(variants[name], statistics.fmean(row["selection"] for row in rows[name]), number)
        for name, number in zip(variants, numbers, strict=True)
    ]
    return sorted(
        found, key=lambda finalist: -finalist.value
    )  # stable: the default, then the better trial


def finalists(space: Space, trials: Sequence[Record], journal: Journal) -> list[Record]:
    """The best `tune.finalists` trials of different settings, none of them the default's."""
    best = ranked(trials)
    if not best:
        raise RunError(
            f"all {len(trials)} trials have failed",
            got=trials[-1]["error"] if trials else "no trial",
            do=f"see the errors in {journal.run.path('trials')}; mend the space and start another by --sweep NAME",
        )
    seen, chosen = [space.default()], []
    for trial in best:
        if trial["settings"] not in seen:
            seen.append(trial["settings"])
            chosen.append(trial)
    return chosen[: space.config.tune.finalists]
