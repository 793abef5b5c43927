"""Searches the augmentation on Ray Tune: eps_low, eps_high, s_max, alpha, k (K, learning rate ...).

    python tune/sweep.py --preset demo --samples 32
    python tune/sweep.py --preset demo --space mine.alpha=0.7,0.95 --space stage2.lr \\
        --space stage2.k=none
    ray job submit --working-dir . -- python tune/sweep.py --preset demo --runs /somewhere

Runs the stages up to the mined tables first, where they are not done yet. Trials, and then the best
few of them against the default, are judged on the selection split alone; val is used once, in the
end, for the winner and the default over several seeds. Killed at any moment, the same command goes
on.
"""

from __future__ import annotations

import argparse
import posixpath
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from raycd.config import cli, layers

if TYPE_CHECKING:
    from raycd.config import Config
    from raycd.evaluate import Metric
    from raycd.runtime.stages.context import Context
    from tune.journal import Journal
    from tune.space import Space


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the options of this job alone."""
    parser.add_argument(
        "--samples", type=int, metavar="N", help="Trials; the same as --tune.samples."
    )
    parser.add_argument(
        "--space",
        action="append",
        default=[],
        metavar="NAME=RANGE",
        help="A range of the space by its dotted name: NAME=LOW,HIGH[,log], NAME=A|B|C, "
        "NAME=none. Repeatable.",
    )
    parser.add_argument(
        "--sweep", default="", metavar="NAME", help="Name of the sweep; default: the run's, -sweep."
    )
    parser.add_argument(
        "--resume", action="store_true", help="Refuse to start a new sweep: one has to be there."
    )


def main(options: cli.Options) -> None:
    """Run the stages that trials read, the trials, and the comparison of the winner with val."""
    from raycd.model import fusion
    from raycd.runtime import cluster, local_ray, pipeline, precision
    from raycd.runtime.evaluate import evaluation
    from raycd.runtime.record import tracking
    from raycd.runtime.stages import reading, weights
    from raycd.runtime.stages.context import Context
    from raycd.runtime.stages.fresh import fresh_head
    from tune.journal import Journal
    from tune.runner import trial_resources
    from tune.space import make_space

    config, flags = _checked(options), options.flags
    local_ray.address()
    # A mistake ends it before anything starts, in data.root or the metric before there is a folder.
    _check_reach(make_space(config, flags.space))
    dataset = reading.unless_drawn(config)
    if dataset is not None:
        reading.check_measured(dataset)
    config = reading.fitted(config, dataset)  # maybe with another head
    _check_trains(config, has_weights=fusion.head_class(config.stage2.head).trains)
    space, name = make_space(config, flags.space), pipeline.run_name(config)
    metric = evaluation.named_metric(config.tune.metric, config, dataset)
    run = pipeline.run_folder(config)
    journal = Journal(posixpath.join(config.runs, flags.sweep or f"{name}-sweep"), run.root)
    journal.check(space, resume=flags.resume)
    with cluster.connected(config.compute):
        cluster.check_room(trial_resources(config), "tune.{}s_per_trial")
        pipeline.run(config, until="encoder")
        head = fresh_head(config, run)  # whatever its class says of its weights
        _check_trains(config, has_weights=any(True for _ in head.parameters()))
        pipeline.run(config, until="mine")
        context = Context(config, run, _dataset=dataset)
        config = precision.settled(config)  # it is noted: fp32 and bf16 are not mixed
        with run.locked():  # another job would replace what trials read
            space = make_space(config, flags.space, dim=context.recorded("stage1", "dim"))
            inputs = {stage: context.recorded(stage, "fingerprint") for stage in ("embed", "mine")}
            records = {stage: pipeline.recorded(run, stage) for stage in ("stage1", "embed")}
            made_with = weights.of_inputs(records)
            with journal.opened(space, inputs, made_with, resume=flags.resume):
                _sweep(context, space, metric, journal)
    print(f"MLflow:  {tracking.how_to_see(config)}")


def _sweep(context: Context, space: Space, metric: Metric, journal: Journal) -> None:
    """Run trials, finals and comparison and write the files, each recorded as it comes."""
    from raycd.runtime.record.tracking import Tracker
    from tune import finals, outcome
    from tune.record import SweepRecord
    from tune.runner import run_trials
    from tune.search import make_budget
    from tune.trial import Tables

    config = space.config
    known = journal.run.read_json("mlflow.json") or {}
    ranges = {f"space.{name}": text for name, text in space.to_dict().items()}
    name = posixpath.basename(journal.run.root)
    run_id = known.get("run_id", "")
    with Tracker.open(config, config.runs, run_id=run_id, name=name, more=ranges) as tracker:
        journal.run.write_json("mlflow.json", {"run_id": tracker.run_id})
        record = SweepRecord(tracker, journal, str(metric))
        whole = Tables.of(context, splits=("train", "selection", "val"))
        tables = whole.only("train", "selection")  # trials never have val
        budget = make_budget(config, *tables.counts(config))
        trials = run_trials(tables, space, metric, journal, budget, record.add)
        finalists = finals.finals(tables, space, trials, metric, journal)
        result = finals.compare(whole, space, finalists[0].settings, metric, journal)
        files = outcome.files(space, trials, finalists, result, str(metric))
        outcome.write(journal, files, result)
        record.catch_up(trials)
        record.finish(trials, result, files)
        print(
            outcome.summary(trials, finalists, result, journal)
        )  # even where MLflow is gone by now


def _checked(options: cli.Options) -> Config:
    """Return the configuration, with --samples. Raises ConfigError where it leaves no search."""
    from raycd.errors import ConfigError
    from raycd.model import fusion

    tree = options.config.model_dump()
    if options.flags.samples is not None:
        tree["tune"]["samples"] = options.flags.samples
    config = layers.build([layers.Layer(layers.COMMAND_LINE, tree)])
    for stage, chosen in (("stage1", config.stage1.select_on), ("stage2", config.stage2.select_on)):
        if chosen == "val" or (stage == "stage2" and chosen != "selection"):
            raise ConfigError(
                "trials are judged on the selection split, so that val stays unseen",
                got=f"{stage}.select_on {chosen}",
                do=f"give --{stage}.select_on selection",
            )
    _check_trains(config, has_weights=fusion.head_class(config.stage2.head).trains)
    return config


def _check_trains(config: Config, *, has_weights: bool) -> None:
    """Raise ConfigError where trials would train nothing, or not with pseudo triplets."""
    from raycd.errors import ConfigError
    from raycd.model.fusion import lincir

    learns = has_weights and config.stage2.head != lincir.NAME
    if not config.stage2.pseudo or config.stage2.epochs == 0 or not learns:
        raise ConfigError(
            "a sweep of this configuration would search nothing",
            got=f"stage2.pseudo {config.stage2.pseudo}, .epochs {config.stage2.epochs}, "
            f".head {config.stage2.head}",
            expected="a head that trains with pseudo triplets",
            do="fix --stage2.pseudo, --stage2.epochs or --stage2.head",
        )


def _check_reach(space: Space) -> None:
    """Raise ConfigError where no trial is long enough to train on pseudo triplets."""
    from raycd.errors import ConfigError

    config = space.config
    epochs = config.tune.epochs or config.stage2.epochs
    least = min(space.ranges["stage2.k"].ends()) if "stage2.k" in space.ranges else config.stage2.k
    if epochs <= least:
        raise ConfigError(
            "no trial would come to an epoch of pseudo triplets, so its thresholds would change "
            "nothing",
            got=f"{epochs} epochs a trial, and at least {least} of original triplets before the "
            "first of pseudo ones",
            do=f"give --tune.epochs {least + 1} or more (0: stage2.epochs), or a smaller stage2.k",
        )


def program(argv: Sequence[str] | None = None, prog: str = "tune/sweep.py") -> int:
    """Do what the command line says, and return the exit code."""
    return cli.run(
        main, argv, prog=prog, description="Search the augmentation of CLIP-CD.", flags=flags
    )


if __name__ == "__main__":
    sys.exit(program())
