"""The trials of a sweep on Ray Tune. The driver keeps each one in the journal as it ends."""

from __future__ import annotations

import gc
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray.tune
import torch
from ray.tune import Callback, FailureConfig, RunConfig, Tuner

from raycd.config import Config
from raycd.evaluate import Metric
from raycd.model import precision
from raycd.progress import Bar
from raycd.runtime import cluster
from raycd.runtime.stages.context import own_device
from raycd.train.loop import EpochResult
from tune import search
from tune.journal import CUT_SHORT, Journal, Record, best
from tune.space import Space
from tune.trial import Tables, cut_short, set_threads, train

RETRIES = 2  # times that a trial starts anew when its process was killed
KEPT = ("epoch", "kind", "loss", "lr", "selection", "score", "seconds")  # of an epoch's result

_QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the journal is the record
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the job as it ends every other
    "TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's own snapshots are never read: they are pickles
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that fails reports no metric
}


def run_trials(
    tables: Tables,
    space: Space,
    metric: Metric,
    journal: Journal,
    budget: search.Budget,
    ended: Callable[[Record], None] = lambda record: None,
) -> list[Record]:
    """Run the trials that are left of `tune.samples`, and return all of them, by number.

    Args:
        budget: How much a trial trains.
        ended: Called in this process with each trial that has ended, after it was kept.
    """
    config, before = space.config, journal.trials()
    left = search.samples(space) - len(before)
    if left <= 0:
        return before
    resources = trial_resources(config)
    with (
        Bar("trials", total=len(before) + left, unit="trials", start=len(before)) as bar,
        _own_folder() as folder,
    ):
        keeper = _Keeper(space, journal, budget, bar, ended, before)
        trainable = ray.tune.with_resources(
            ray.tune.with_parameters(
                _trial, tables=tables, space=space, metric=metric, triplets=budget.total
            ),
            resources,
        )
        tuner = Tuner(
            trainable,
            tune_config=ray.tune.TuneConfig(
                num_samples=left,
                search_alg=search.make_proposer(space, before),
                scheduler=search.make_scheduler(config.tune, budget, before),
                # Without a number Ray Tune asks for one process at a time, and starts the next when
                # a trial has ended.
                max_concurrent_trials=concurrency(config),
                reuse_actors=True,
            ),
            run_config=RunConfig(
                name="sweep",
                storage_path=folder,
                callbacks=[keeper],
                failure_config=FailureConfig(max_failures=RETRIES),
                verbose=0,
            ),
        )
        lost = _fit(tuner)
    if lost is not None:
        # Processes of trials end with the last handle on them, and free their CPUs.
        gc.collect()
        raise lost
    return journal.trials()


def _fit(tuner: Tuner) -> Exception | None:
    """Run all trials, and return the error of one that could not be kept.

    Its frames are left out: they hold the other trials.
    """
    try:
        tuner.fit()
    except _Lost as lost:
        return lost.error.with_traceback(None)
    return None


def concurrency(config: Config) -> int:
    """Return the trials at a time: as many as are asked for and fit."""
    need = {name.upper(): amount for name, amount in trial_resources(config).items()}
    return cluster.fitting(config.tune.concurrent or 10_000, need)


def trial_resources(config: Config) -> dict[str, float]:
    """Return what Ray reserves for a trial."""
    resources = {"cpu": config.tune.cpus_per_trial}
    if cluster.uses_gpu(config.compute):
        resources["gpu"] = config.tune.gpus_per_trial
    return resources


def _trial(
    proposed: Mapping[str, Any], tables: Tables, space: Space, metric: Metric, triplets: int
) -> None:
    """Train in a trial's process. An error is its result: it does not end the sweep."""
    set_threads(space.config)
    greatest, began = 0.0, time.monotonic()
    short: dict[str, int] = {}

    def report(result: EpochResult, seen: int) -> None:
        nonlocal greatest
        greatest = max(greatest, result.score)
        entry = result.to_dict()
        seconds = round(time.monotonic() - began, 3)
        ray.tune.report(
            {
                search.SEEN: seen,
                search.VALUE: greatest,
                "entry": {search.SEEN: seen, **{key: entry[key] for key in KEPT}},
                "trial_seconds": seconds,
                **short,
            }
        )

    try:
        config = as_trial(space.configured(space.settings(proposed)))
        short[CUT_SHORT] = cut_short(tables, config)
        train(tables, config, metric, report, triplets=triplets)
    except Exception as error:
        ray.tune.report(
            {"error": f"{type(error).__name__}: {error}", "trial_seconds": time.monotonic() - began}
        )


def as_trial(config: Config) -> Config:
    """Return the configuration in the precision of trials."""
    device = own_device(config)
    used = precision.of(config.tune.precision, torch.device(device))
    if config.tune.precision == "auto" and device == "cpu" and _has_amx():
        used = "bf16"
    return config.model_copy(
        update={"stage2": config.stage2.model_copy(update={"precision": used})}
    )


def _has_amx() -> bool:
    """Tell whether the CPU multiplies bf16 matrices much faster than fp32 ones (Linux)."""
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


class _Lost(BaseException):
    """A trial could not be kept.

    Not an Exception: Ray Tune would take it for the trial's own and run the trial again.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class _Keeper(Callback):
    """Gathers the epochs of running trials and keeps what ends."""

    def __init__(
        self,
        space: Space,
        journal: Journal,
        budget: search.Budget,
        bar: Bar,
        ended: Callable[[Record], None],
        before: list[Record],
    ) -> None:
        self._space, self._journal, self._total = space, journal, budget.total
        self._bar, self._ended = bar, ended
        self._all = list(before)
        self._next = max((trial["number"] for trial in before), default=-1) + 1
        self._running: dict[str, Record] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Ray Tune writes a pickle of it that is never read."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Begin the record of a trial, anew after its process was killed."""
        number = (
            self._running[trial.trial_id]["number"]
            if trial.trial_id in self._running
            else self._next
        )
        self._next = max(self._next, number + 1)
        proposed = {name: trial.config[name] for name in self._space.ranges}
        self._running[trial.trial_id] = {
            "number": number,
            "proposed": proposed,
            "settings": self._space.settings(proposed),
            "status": "failed",
            "value": None,
            "epochs": [],
            "started": round(time.time(), 3),
            "seconds": 0.0,
            "error": None,
        }

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Keep an epoch, or the error that ended the trial."""
        record = self._running[trial.trial_id]
        record["seconds"] = round(result.get("trial_seconds", 0.0), 3)
        if "error" in result:
            record["error"] = result["error"]
        elif "entry" in result:
            record["epochs"].append(result["entry"])
            record["value"] = result[search.VALUE]
            record[CUT_SHORT] = result[CUT_SHORT]

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Keep a trial that has trained all epochs, was stopped, or has reported an error."""
        record = self._running.pop(trial.trial_id)
        if record["error"] is None and not record["epochs"]:
            record["error"] = "it has trained no epoch"
        if record["error"] is not None:
            record["value"] = None
        else:
            whole = record["epochs"][-1][search.SEEN] >= self._total
            record["status"] = "finished" if whole else "stopped"
        self._keep(record)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Keep a trial whose process was killed too often."""
        record = self._running.pop(trial.trial_id)
        lines = str(trial.get_error() or "").strip().splitlines() or ["unknown"]
        self._keep(record | {"value": None, "error": lines[-1][:500]})

    def _keep(self, record: Record) -> None:
        try:
            self._journal.write(record)
            self._all.append(record)
            self._show()
            self._ended(record)
        except Exception as error:  # a full disk
            raise _Lost(error) from error

    def _show(self) -> None:
        leader = best(self._all)
        failed = sum(trial["status"] == "failed" for trial in self._all)
        shown = {"best": leader["value"]} if leader is not None else {}
        self._bar.advance(1, **shown, **({"failed": failed} if failed else {}))


@contextmanager
def _own_folder() -> Iterator[str]:
    """Yield a temporary folder for Ray Tune's own files, with its settings in the environment."""
    before = {name: os.environ.get(name) for name in _QUIET}
    os.environ.update(_QUIET)
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory(
            prefix="raycd-tune-", ignore_cleanup_errors=True
        ) as folder:
            yield folder
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
