"""What every stage that trains does: train, load the best epoch, record how it went."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from raycd.config import AdaptConfig, Stage1Config, Stage2Config
from raycd.run import Writing, fingerprint, short_name
from raycd.runtime.stages.context import Context
from raycd.runtime.train import training
from raycd.train import checkpoint
from raycd.train.loop import Schedule


def fit(
    context: Context,
    writing: Writing,
    name: str,
    make: training.MakeTask,
    inputs: Mapping[str, Any],
    settings: AdaptConfig | Stage1Config | Stage2Config,
    parts: dict[str, nn.Module],
    *,
    before: str,
    select_on: str = "last",
    unit: str = "triplets",
) -> None:
    """Train `parts` as `training.train` does, and give them the weights of the best epoch.

    Args:
        name: What the progress shows.
        parts: Of the task's module, by their names there; in this process.
        before: The stage whose encoder it begins with.
        select_on: The split that chose the epoch; "last" where none did.
    """
    where = storage(context, writing, before)
    trained = training.train(
        name,
        make,
        inputs,
        Schedule.of(settings, context.config.seed),
        context.config,
        tracked=context.tracked,
        unit=unit,
        **where,
    )
    checkpoint.load_weights(trained.checkpoint, nn.ModuleDict(parts))
    writing.record |= {
        "history": trained.history,
        "best_epoch": trained.best,
        "failures": trained.failures,
        "select_on": select_on,
        training.CHECKPOINTS: where["name"],
    }


def storage(context: Context, writing: Writing, before: str) -> dict[str, str]:
    """Return where Ray Train keeps a stage's checkpoints.

    Apart for each fingerprint and each encoder of the stage `before`: one that was trained, or read
    from its files, a second time may have other weights under the same fingerprint.
    """
    encoder = context.recorded(before, "encoder")
    return {
        "storage": context.run.path(training.STORAGE),
        "name": storage_name(writing.stage, writing.fingerprint, encoder),
    }


def storage_name(stage: str, own: str, encoder: str) -> str:
    """Return the name of a stage's checkpoints, by its fingerprint and the hash of that encoder."""
    return short_name(stage, fingerprint(own, encoder))
