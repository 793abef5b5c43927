"""What proposes settings and what ends poor trials, also of a sweep that goes on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from raycd.config import Config, TuneConfig
from raycd.train.batches import triplets_seen
from tune.journal import Record
from tune.space import Space

# Of a result: the best score so far; triplets that the trial has trained on.
VALUE, SEEN = "value", "seen"


@dataclass(frozen=True)
class Budget:
    """How much a trial trains, in triplets: as much with few pseudo triplets as with many."""

    grace: int
    """What every trial gets."""
    total: int
    """What the best get."""


class Proposer(OptunaSearch):
    """Optuna, which hears of each trial when it ends.

    Ray Tune's own class would take a result of a failed trial, which has no value, and two of one
    that starts anew, for errors.
    """

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Do nothing: the proposals do not depend on single epochs."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Hand Optuna the trial's value, or that it has failed."""
        measured = result is not None and VALUE in result and not error
        super().on_trial_complete(trial_id, result if measured else None, error=not measured)


def make_proposer(space: Space, ended: Sequence[Record]) -> Proposer:
    """Return what proposes settings: a TPE or random sweep tries the default first, once."""
    config = space.config
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("ray.tune.search.optuna").setLevel(logging.WARNING)
    seed = config.seed + len(ended)  # a resumed sweep must not propose the same again
    settings = config.tune
    sampler: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler(seed=seed)
    if settings.search == "tpe":
        sampler = optuna.samplers.TPESampler(seed=seed)
    tried = [trial["proposed"] for trial in ended]
    wanted = [space.default()] if space.holds(space.default()) else []
    if settings.search == "grid":
        wanted = grid(space)
    points = [point for point in wanted if point not in tried] or None
    proposer = Proposer(
        {name: given.distribution() for name, given in space.ranges.items()},
        metric=VALUE,
        mode="max",
        sampler=sampler,
        points_to_evaluate=points,
    )
    for trial in ended:
        if space.holds(trial["proposed"]):
            proposer.add_evaluated_point(
                trial["proposed"], trial["value"], error=trial["value"] is None
            )
    return proposer


def grid(space: Space) -> list[dict[str, Any]]:
    """Return a grid sweep's combinations in an order drawn by the seed, at most `tune.samples`."""
    config = space.config
    points = space.grid(config.tune.grid_points)
    order = np.random.default_rng([config.seed, 9]).permutation(len(points))
    return [points[i] for i in order[: config.tune.samples]]


def samples(space: Space) -> int:
    """Return the number of trials: as many as asked for, or as a grid has."""
    settings = space.config.tune
    return len(grid(space)) if settings.search == "grid" else settings.samples


def make_budget(config: Config, original: int, pseudo: int) -> Budget:
    """Return `tune.epochs` and `tune.grace` in triplets of the default settings."""
    settings, stage2 = config.tune, config.stage2
    total, grace = (
        triplets_seen(stage2, epochs, original, pseudo)
        for epochs in (settings.epochs or stage2.epochs, settings.grace or stage2.k + 1)
    )
    return Budget(grace=min(grace, total), total=total)


def make_scheduler(settings: TuneConfig, budget: Budget, ended: Sequence[Record]) -> TrialScheduler:
    """Return ASHA on the value, its rungs filled with what the ended trials had there."""
    if settings.scheduler == "none" or budget.grace >= budget.total:
        return FIFOScheduler()  # type: ignore[no-untyped-call]  # Ray Tune's
    asha = _EachRung(
        time_attr=SEEN,
        metric=VALUE,
        mode="max",
        max_t=budget.total,
        grace_period=budget.grace,
        reduction_factor=settings.reduction,
    )
    controller: Any = None  # ASHA does not ask it
    for trial in ended:
        stand_in: Any = _Ended(f"ended-{trial['number']}")
        asha.on_trial_add(controller, stand_in)
        greatest = 0.0
        for epoch in trial["epochs"]:
            greatest = max(greatest, epoch["score"])
            asha.on_trial_result(controller, stand_in, {SEEN: epoch[SEEN], VALUE: greatest})
        if trial["value"] is None:
            asha.on_trial_remove(controller, stand_in)
        else:  # it also counts at the rungs that its last epoch went beyond
            asha.on_trial_complete(
                controller, stand_in, {SEEN: trial["epochs"][-1][SEEN], VALUE: trial["value"]}
            )
    return asha


class _EachRung(AsyncHyperBandScheduler):
    """ASHA that notes a trial at every rung that one report has crossed, with what that reports.

    Ray's notes it at the highest of them, and at the others by later reports, which lower rungs
    would then measure every other trial by. An epoch of pseudo triplets may cross several.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._rungs: list[float] = [settings["grace_period"]]
        while self._rungs[-1] * settings["reduction_factor"] <= settings["max_t"]:
            self._rungs.append(self._rungs[-1] * settings["reduction_factor"])
        self._seen: dict[str, float] = {}

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Judge the trial at each rung between its last report and this one, the lowest first."""
        before = self._seen.get(trial.trial_id, 0.0)
        self._seen[trial.trial_id] = result.get(SEEN, before)
        crossed = [rung for rung in self._rungs if before < rung < result.get(SEEN, before)]
        for seen in [*crossed, result.get(SEEN)]:
            at = result if seen is None else {**result, SEEN: seen}
            action: str = super().on_trial_result(controller, trial, at)
            if action == TrialScheduler.STOP:
                break
        return action


@dataclass(frozen=True)
class _Ended:
    """What ASHA asks of a trial."""

    trial_id: str
