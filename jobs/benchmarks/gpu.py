"""The core without Ray on one GPU: RN50x4 with random weights, at the paper's batch sizes.

How far features, loss and mined neighbours differ from the CPU's is told beside the times. Images
of random weights are nearly alike, so the features of a query speak of its text. It needs raycd's
core only (torch, open_clip, numpy, pyarrow, faiss), so it runs without Ray.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import torch

from jobs.benchmarks.measuring import features, timed
from raycd import mine
from raycd.config import Config, MineConfig, Precision
from raycd.errors import ConfigError
from raycd.mine.neighbours import normalise
from raycd.mine.search import Shard, search
from raycd.model.compiling import encode_compiled
from raycd.model.embed import frozen
from raycd.model.encoder import Encoder, create
from raycd.model.loss import batch_classification_loss
from raycd.model.precision import use
from raycd.train.finetune import SumOfFeatures

TRAIN_IMAGES, NEIGHBOURS = 46_609, 64  # Fashion-IQ's distinct train images
_TIMES = 20  # that a step is measured


def measure(config: Config, flags: argparse.Namespace) -> dict[str, Any]:
    """Return agreement with the CPU, rates and peak memory. Raises ConfigError without a GPU."""
    if not torch.cuda.is_available():
        raise ConfigError("there is no GPU here", do="run it on a machine with one")
    torch.manual_seed(0)
    encoder = create(config.encoder.model_copy(update={"pretrained": ""}))
    rows: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    rows |= _agreement(encoder)
    rows |= _embedding(encoder, config.embed.batch_size)
    rows |= _mining(encoder.dim)
    rows |= _training(encoder, config)
    rows |= _training(encoder, config, checkpointing=True)
    rows |= _training(encoder, config, compiled=True)
    return rows


def _agreement(encoder: Encoder) -> dict[str, float]:
    """Return the largest differences between CPU and GPU of normalised features and of the loss."""
    pixels, tokens, targets = _batch(encoder, 4)
    encoder.trainable("none")
    found: dict[str, tuple[torch.Tensor, float]] = {}
    ways: list[tuple[str, Precision]] = [("cpu", "fp32"), ("cuda", "fp32"), ("cuda", "bf16")]
    for device, precision in ways:
        encoder.to(device).precision = use(precision, torch.device(device))
        with torch.inference_mode():
            query, target = SumOfFeatures(encoder)(pixels, tokens)
            loss = batch_classification_loss(query, target, targets.to(device), 100.0)
        found[f"{device} {precision}"] = (query.cpu(), float(loss))
    reference, loss_cpu = found.pop("cpu fp32")
    rows = {}
    for name, (query, value) in found.items():
        difference = float((query - reference).abs().max())
        rows[f"query features, {name} against cpu: largest difference"] = difference
        rows[f"loss, {name} against cpu: difference"] = abs(value - loss_cpu)
    return rows


def _training(
    encoder: Encoder, config: Config, *, checkpointing: bool = False, compiled: bool = False
) -> dict[str, float]:
    """Time stage 1's step at the paper's batch of 64, bf16, on noise."""
    stage1, encoder = config.stage1, deepcopy(encoder.cpu())  # alone on the GPU
    encoder.to("cuda").precision = "bf16"
    encoder.trainable("both", grad_checkpointing=checkpointing)
    if compiled:
        encode_compiled(encoder, must=True, trains=True)
    module = SumOfFeatures(encoder)
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-6, fused=True)
    pixels, tokens, targets = _batch(encoder, stage1.batch_size)

    def step() -> None:
        query, target = module(pixels, tokens)
        loss = batch_classification_loss(query, target, targets.cuda(), stage1.logit_scale)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch
        optimizer.step()

    torch.cuda.reset_peak_memory_stats()
    rate = stage1.batch_size / _seconds(step)
    ending = ", checkpointing" if checkpointing else ", compiled" if compiled else ""
    name = f"stage 1, batch {stage1.batch_size}, bf16{ending}"
    peak = torch.cuda.max_memory_allocated() / 2**30
    return {f"{name}: triplets/s": rate, f"{name}: peak GiB": peak}


def _embedding(encoder: Encoder, batch_size: int) -> dict[str, float]:
    """Time encoding under autocast, with weights held in bf16, and compiled as well."""
    pixels, tokens, _ = _batch(encoder, batch_size)
    encoder.trainable("none")
    encoder.to("cuda").precision = "bf16"
    held = frozen(deepcopy(encoder), "bf16", "cuda")
    rows = {}
    for way in ("autocast", "weights in bf16", "compiled"):
        if way == "compiled":
            encode_compiled(held, must=True)
        used = encoder if way == "autocast" else held
        with torch.inference_mode():
            images = 2 * batch_size / _seconds(partial(used.encode_images, pixels))
            texts = batch_size / _seconds(partial(used.encode_tokens, tokens))
        rows[f"embedding, batch {2 * batch_size}, bf16, {way}: images/s"] = images
        rows[f"embedding, batch {batch_size}, bf16, {way}: texts/s"] = texts
    return rows


def _mining(dim: int) -> dict[str, float]:
    """Find the neighbours of all train images on the CPUs, then on the GPU, which is warm."""
    feature_ND, everything = features(TRAIN_IMAGES, dim), np.arange(TRAIN_IMAGES, dtype=np.int32)
    # Without a floor every list is full
    settings = MineConfig(neighbours=NEIGHBOURS, batch_size=4096, floor=-1.0)
    pools = [mine.Pool("", everything, everything)]

    def found(device: str) -> Callable[[], Any]:
        return lambda: mine.find_neighbours(feature_ND, pools, settings, device=device)

    expected, on_cpus = timed(found("cpu"))
    found("cuda")()
    table, seconds = timed(found("cuda"))
    unit_ND = normalise(feature_ND, everything)
    shard = [Shard(unit_ND, everything)]
    _, alone = timed(lambda: search(everything, unit_ND, shard, settings, device="cuda"))
    name = f"mining, {TRAIN_IMAGES} x {dim}, top {NEIGHBOURS}"
    return {
        f"{name}, CPUs: images/s": TRAIN_IMAGES / on_cpus,
        f"{name}, GPU: images/s": TRAIN_IMAGES / seconds,
        f"{name}, GPU, features normalised: images/s": TRAIN_IMAGES / alone,
        "tables that are not equal": float(not table.equals(expected)),
    }


def _batch(encoder: Encoder, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (2 * count, *encoder.preprocess.size, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return pixels, encoder.tokenize(["Is blue and has long sleeves"] * count), torch.arange(count)


def _seconds(step: Callable[[], object]) -> float:
    """Return the seconds of one step, on average, after three that warm up."""

    def steps(count: int) -> None:
        for _ in range(count):
            step()
        torch.cuda.synchronize()

    steps(3)
    return timed(lambda: steps(_TIMES))[1] / _TIMES
