"""The stages that train: stage 1, stage 2."""

from __future__ import annotations

import posixpath
from typing import Any

import pyarrow.parquet as pq
import torch

from raycd import scratch
from raycd.config import Config
from raycd.durable import sha256
from raycd.features import map_cache
from raycd.features.map_cache import Extras
from raycd.features.stored import Stored
from raycd.model import encoder as encoders
from raycd.model import fusion, lora
from raycd.model.fusion import joint
from raycd.model.fusion.registry import WEIGHTS
from raycd.run import Writing, local_copy
from raycd.runtime.embed import embed_shards
from raycd.runtime.stages import beginning, inversion
from raycd.runtime.stages.context import (
    CACHES,
    IMAGES,
    QUERIES,
    TEXTS,
    Context,
    needs,
    query_table,
)
from raycd.runtime.stages.fitting import fit
from raycd.runtime.train import decoding
from raycd.train import hard_negatives
from raycd.train.finetune import FineTune, parameters, prepare
from raycd.train.fuse import Fuse, new_head
from raycd.train.task import Task
from raycd.train.triplets import readable_triplets


def stage1(context: Context, writing: Writing) -> None:
    """Fine-tune CLIP (3.2.1)."""
    config, source = context.config, context.run.path(context.before_stage1, "encoder")
    tuned = encoders.load_saved(context.run.local(context.before_stage1) / "encoder")
    if config.stage1.finetune != "none" and config.stage1.epochs > 0:
        decoding.check_room(config)  # which may have changed since the first stage
        paths = context.readable()
        usable, left_out = readable_triplets(context.dataset, paths)
        writing.record["counts"] = {"triplets": len(usable), "left_out": left_out}
        settings, adapters = config.stage1, prepare(tuned, config.stage1, config.seed)
        writing.record["parameters"] = parameters("stage 1", tuned)
        fit(
            *(context, writing, "stage 1", _make_finetune),
            {"encoder": source, "dataset": context.dataset, "paths": paths},
            settings,
            {"encoder": tuned},
            before=context.before_stage1,
            select_on=settings.select_on,
        )
        lora.merge(adapters)
        writing.record["select_by"] = settings.select_by
    tuned.save(writing.folder / "encoder")
    writing.record |= {"encoder": tuned.fingerprint(), "dim": tuned.dim}


def stage2(context: Context, writing: Writing) -> None:
    """Train the fusion head on cached features (3.2.2)."""
    config, settings = context.config, context.config.stage2
    if fusion.head_class(settings.head).on_titles:
        fusion.save(*inversion.train(context, writing), writing.folder / "head")
        writing.record["head"] = sha256(writing.folder / "head" / WEIGHTS)
        return
    shapes = {need: context.recorded(CACHES[need], "shape") for need in sorted(needs(config))}
    head, head_config = new_head(config, context.recorded("stage1", "dim"), shapes)
    beginning.go_on(head, config, context.run.local("encoder"))
    if settings.epochs > 0 and any(True for _ in head.parameters()):
        fit(
            *(context, writing, "stage 2", _make_fuse),
            {
                "features": context.run.path("embed"),
                "pseudo": context.run.path("filter"),
                "mined": context.run.path("mine"),
                "dataset": context.dataset,
                "dim": head_config.dim,
                "caches": context.caches(shapes),
                "encoder": context.run.path("encoder"),
            },
            settings,
            {"head": head},
            before="stage1",
            select_on=settings.select_on,
        )
        writing.record["select_by"] = settings.select_by
    if head_config.name == joint.NAME:
        _compose(context, writing)
    fusion.save(head, head_config, writing.folder / "head")
    writing.record["head"] = sha256(writing.folder / "head" / WEIGHTS)


def _compose(context: Context, writing: Writing) -> None:
    """Let the encoder itself compose the queries of val."""
    used = encoders.load_saved(context.run.local("stage1") / "encoder")
    table = query_table(context.dataset, "val")
    uri = posixpath.join(writing.shared, QUERIES)
    embed_shards.embed_table(uri, "queries", table, used, context.config)


def _make_finetune(inputs: Any, config: Config, device: torch.device) -> Task[Any]:
    with scratch.folder() as copies:
        loaded = encoders.load_saved(local_copy(inputs["encoder"], copies))
    elsewhere = decoding.decoder(config.stage1, config.compute)
    return FineTune(loaded.to(device), inputs["dataset"], inputs["paths"], config, elsewhere)


def _make_fuse(inputs: Any, config: Config, device: torch.device) -> Task[Any]:
    images, texts = (
        Stored.open(posixpath.join(inputs["features"], what)).features() for what in (IMAGES, TEXTS)
    )
    with scratch.folder() as copies:
        pseudo = pq.read_table(local_copy(inputs["pseudo"], copies) / "pseudo_triplets.parquet")
    caches = {}
    for need, source in inputs["caches"].items():
        with scratch.folder() as copies:  # an open cache outlives its files
            caches[need] = map_cache.read(local_copy(source, copies))
    extras = Extras(caches)
    head, _ = new_head(config, inputs["dim"], extras.shapes())
    if config.encoder.bundle:
        with scratch.folder() as copies:
            beginning.go_on(head, config, local_copy(inputs["encoder"], copies))
    return Fuse(
        *(head.to(device), inputs["dataset"], pseudo, images, texts, config),
        extras=extras,
        neighbours=hard_negatives.mined(config.stage2, inputs["mined"]),
    )
