"""Stage 2 of heads that learn from titles alone."""

from __future__ import annotations

from typing import Any

import torch

from raycd import progress, scratch
from raycd.config import Config
from raycd.data import titles
from raycd.model import encoder as encoders
from raycd.model import fusion
from raycd.model.encoder import Encoder
from raycd.model.fusion import lincir
from raycd.model.fusion.head import WORDS
from raycd.model.tokenizer import context_length
from raycd.run import Writing, local_copy
from raycd.runtime.stages import beginning
from raycd.runtime.stages.context import Context
from raycd.runtime.stages.fitting import fit
from raycd.train.fuse import new_head
from raycd.train.invert import Invert
from raycd.train.task import Task


def train(context: Context, writing: Writing) -> tuple[fusion.Head, fusion.HeadConfig]:
    """Train the head on the texts of the train images; return it and its shape."""
    config, settings = context.config, context.config.stage2
    # The stage whose head is gone on from, where it is of a bundle
    first = context.run.path("encoder")
    encoder = encoders.load_saved(context.run.local("stage1") / "encoder")
    head, head_config = _head(config, encoder, first)
    if not settings.epochs:
        return head, head_config
    if settings.compile is True:
        progress.say(f"warning: stage 2: the head {settings.head} is not compiled")
    texts = titles.of_dataset(context.own, "train", config.data.title).values()
    distinct = list(dict.fromkeys(text for one in texts for text in one))
    fit(
        *(context, writing, "stage 2", _make_invert),
        {"encoder": context.run.path("stage1", "encoder"), "first": first, "texts": distinct},
        settings,
        {"head": head},
        before="stage1",
        unit="texts",
    )
    writing.record |= {"compiled": False, "counts": {"texts": len(distinct)}}
    return head, head_config


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
