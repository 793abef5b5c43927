"""A sweep's trials against naive ones, which embed, mine and train anew for every setting."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from raycd.config import Config
from raycd.data.folder import is_local
from raycd.errors import ConfigError
from raycd.evaluate import Metric
from raycd.run import Run
from raycd.runtime import cluster, pipeline
from raycd.runtime.stages.context import Context
from tune.journal import Journal, Record, best
from tune.runner import as_trial, concurrency, run_trials
from tune.search import make_budget
from tune.space import make_space
from tune.trial import Tables

# What a naive trial finds there
KEPT = ("catalogue", "encoder", "zero_shot", "adapt", "compose", "stage1")


def measure(config: Config, flags: argparse.Namespace) -> dict[str, Any]:
    """Return minutes of `tune.samples` trials, Ray Tune's own cost of each, and trials an hour.

    The sweep embeds and mines once, and that is counted. The naive trial is this pipeline without
    its tables: embed, mine, filter and train the head, with Ray already running. It trains as long
    as a trial of the default settings that no scheduler ends, and in the same precision: what it
    takes longer is those stages, an early end that it has not, a start of Ray Train, and that it
    runs alone. Ray Tune's own cost is the time in which fewer trials ran than
    may run at once, the start of their processes included.
    """
    if not is_local(config.runs):
        raise ConfigError(
            "the naive trial works on a copy of the run",
            got=f"runs {config.runs}",
            expected="--runs, a local folder",
        )
    with cluster.connected(), tempfile.TemporaryDirectory(prefix="raycd-") as scratch:
        run = pipeline.run(config, until="mine").run
        context = Context(config, run)
        at_a_time = concurrency(config)
        trials, wall = _sweep(context, Path(scratch))
        naive, epochs = _naive(config, run, Path(scratch))
    seconds = sum(trial["seconds"] for trial in trials)
    tables = sum(naive[stage] for stage in naive if stage != "stage2")
    whole = wall + tables
    leader = best(trials)
    return {
        "trials": len(trials),
        "of them ended early": sum(trial["status"] == "stopped" for trial in trials),
        "failed": sum(trial["status"] == "failed" for trial in trials),
        "cores": os.cpu_count(),
        "trials at a time": at_a_time,
        "sweep, minutes": wall / 60,
        "its tables, made once, minutes": tables / 60,
        "training in a trial, s": seconds / len(trials),
        "epochs in a trial, at most": max(len(trial["epochs"]) for trial in trials),
        "epochs in a trial, mean": sum(len(trial["epochs"]) for trial in trials) / len(trials),
        "Ray Tune's own cost of a trial, s": (wall - seconds / at_a_time) / len(trials),
        "best on the selection split": leader["value"] if leader else None,
        "naive trial, s": sum(naive.values()),
        "epochs in the naive trial": epochs,
        **{f"naive trial: {stage}, s": spent for stage, spent in naive.items()},
        "trials an hour, sweep and its tables": 3600 * len(trials) / whole,
        "trials an hour, naive": 3600 / sum(naive.values()),
        "ratio": sum(naive.values()) / (whole / len(trials)),
    }


def _sweep(context: Context, scratch: Path) -> tuple[list[Record], float]:
    config, began = context.config, time.perf_counter()
    space = make_space(config, [], dim=context.recorded("stage1", "dim"))
    tables = Tables.of(context, splits=("train", "selection"))
    journal = Journal(str(scratch / "sweep"), context.run.root)
    budget = make_budget(config, *tables.counts(config))
    trials = run_trials(tables, space, Metric(), journal, budget)
    return trials, time.perf_counter() - began


def _naive(config: Config, run: Run, scratch: Path) -> tuple[dict[str, float], int]:
    """Return the seconds of each stage of one naive trial, as recorded, and its epochs."""
    name = pipeline.run_name(config)
    for stage in KEPT:
        if run.exists(stage):
            shutil.copytree(run.path(stage), scratch / name / stage)
    shutil.copy(run.path("run.json"), scratch / name)
    tracking = config.tracking.model_copy(update={"enabled": False})
    epochs = {"epochs": config.tune.epochs or config.stage2.epochs}
    stage2 = as_trial(config).stage2.model_copy(update=epochs)
    changes = {"runs": str(scratch), "tracking": tracking, "stage2": stage2}
    naive = config.model_copy(update=changes)
    done = pipeline.run(naive, until="stage2")
    seconds = {stage: pipeline.recorded(done.run, stage)["seconds"] for stage in done.done}
    return seconds, len(pipeline.recorded(done.run, "stage2")["history"])
