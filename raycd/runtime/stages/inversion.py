"""Stage 2 of heads that learn from titles alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raycd import progress, scratch
from raycd.config import Config
from raycd.data import titles
from raycd.data.schema import Dataset
from raycd.model import encoder as encoders
from raycd.model import fusion
from raycd.model.encoder import Encoder
from raycd.model.fusion import lincir
from raycd.model.fusion.head import WORDS
from raycd.model.tokenizer import context_length
from raycd.run import local_copy
from raycd.runtime.stages import beginning
from raycd.runtime.train import training
from raycd.train import checkpoint
from raycd.train.fuse import new_head
from raycd.train.invert import Invert
from raycd.train.loop import Schedule
from raycd.train.task import Task


def train(
    config: Config, own: Dataset, folder: Path, shared: str, first: str, how: Mapping[str, Any]
) -> tuple[fusion.Head, fusion.HeadConfig, dict[str, Any]]:
    """Train the head on the texts of the train images; return it, its shape and what happened.

    Args:
        own: Whose titles.
        folder: The encoder, here.
        shared: The same, where all workers find it.
        first: The stage `encoder`, likewise, whose head is gone on from where it is of a bundle.
        how: Of `training.train`: storage, name, tracked.
    """
    head, head_config = _head(config, encoders.load_saved(folder), first)
    texts = titles.of_dataset(own, "train", config.data.title).values()
    distinct = list(dict.fromkeys(text for one in texts for text in one))
    if not config.stage2.epochs:
        return head, head_config, {}
    if config.stage2.compile is True:
        progress.say(f"warning: stage 2: the head {config.stage2.head} is not compiled")
    trained = training.train(
        "stage 2",
        _make_invert,
        {"encoder": shared, "first": first, "texts": distinct},
        Schedule.of(config.stage2, config.seed),
        config,
        unit="texts",
        **how,
    )
    checkpoint.load_weights(trained.checkpoint, nn.ModuleDict({"head": head}))
    return (
        head,
        head_config,
        {
            "history": trained.history,
            "best_epoch": trained.best,
            "failures": trained.failures,
            "select_on": "last",
            "compiled": False,
            "counts": {"texts": len(distinct)},
        },
    )


def _head(config: Config, encoder: Encoder, first: str) -> tuple[lincir.LinCIR, fusion.HeadConfig]:
    shapes = {WORDS: [context_length(encoder.model_config)]}
    head, head_config = new_head(config, encoder.dim, shapes, encoder.model_config)
    assert isinstance(head, lincir.LinCIR), "no other head learns from titles"
    if config.encoder.bundle:
        with scratch.folder() as copies:
            beginning.go_on(head, config, local_copy(first, copies))
    lincir.fill(head, encoder.clip)
    return head, head_config


def _make_invert(inputs: Any, config: Config, device: torch.device) -> Task[Any]:
    with scratch.folder() as copies:
        encoder = encoders.load_saved(local_copy(inputs["encoder"], copies))
    head, _ = _head(config, encoder, inputs["first"])
    return Invert(head.to(device), inputs["texts"], encoder.tokenizer, config)
