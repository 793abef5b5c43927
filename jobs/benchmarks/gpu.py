"""The core without Ray on one accelerator: RN50x4 with random weights, at the paper's batch sizes.

Correctness against the processor comes first: features, loss and mined neighbours must agree before
anything is timed. It needs raycd's core only (torch, open_clip, numpy, pyarrow, faiss), so it runs
where Ray is not installed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from raycd import mine
from raycd.config import Config, MineConfig
from raycd.errors import ConfigError
from raycd.model.encoder import Encoder, create
from raycd.model.loss import batch_classification_loss
from raycd.train.finetune import SumOfFeatures

TRAIN_IMAGES, NEIGHBOURS = 46_609, 64  # Fashion-IQ's distinct train images


def measure(config: Config, flags: argparse.Namespace) -> dict[str, Any]:
    """Agreement with the processor, then rates and peak memory. Raises ConfigError without a GPU."""
    if not torch.cuda.is_available():
        raise ConfigError("there is no GPU here", do="run it on a machine with one")
    encoder_config = config.encoder.model_copy(update={"pretrained": ""})
    torch.manual_seed(0)
    encoder = create(encoder_config)
    rows: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    rows |= _agreement(encoder)
    rows |= _embedding(encoder, config.embed.batch_size)
    rows |= _mining(encoder.dim)
    rows |= _training(encoder, config)
    return rows


def _agreement(encoder: Encoder) -> dict[str, float]:
    """Largest difference between processor and GPU, in fp32 and bf16, of normalised features and of
    the loss.
    """
    pixels, tokens, targets = _batch(encoder, 4)
    encoder.trainable("none")
    found: dict[str, tuple[torch.Tensor, float]] = {}
    for device, precision in (("cpu", "fp32"), ("cuda", "fp32"), ("cuda", "bf16")):
        encoder.to(device).precision = precision  # type: ignore[assignment]
        with torch.inference_mode():
            query, target = SumOfFeatures(encoder)(pixels, tokens)
            loss = batch_classification_loss(query, target, targets.to(device), 100.0)
        found[f"{device} {precision}"] = (query.cpu(), float(loss))
    reference, loss_cpu = found.pop("cpu fp32")
    rows = {}
    for name, (query, value) in found.items():
        rows[f"query features, {name} against cpu: largest difference"] = float(
            (query - reference).abs().max()
        )
        rows[f"loss, {name} against cpu: difference"] = abs(value - loss_cpu)
    return rows


def _training(encoder: Encoder, config: Config) -> dict[str, float]:
    """Stage 1's step at the paper's batch of 64, bf16, with and without gradient checkpointing."""
    rows = {}
    for checkpointing in (False, True):
        encoder.to("cuda").precision = "bf16"
        encoder.trainable("both", grad_checkpointing=checkpointing)
        module = SumOfFeatures(encoder)
        optimizer = torch.optim.AdamW(
            [p for p in module.parameters() if p.requires_grad], lr=2e-6, fused=True
        )
        step = _step(module, optimizer, config)
        torch.cuda.reset_peak_memory_stats()
        seconds = _seconds(step)
        name = f"stage 1, batch {config.stage1.batch_size}, bf16{', checkpointing' if checkpointing else ''}"
        rows[f"{name}: triplets/s"] = config.stage1.batch_size / seconds
        rows[f"{name}: peak GiB"] = torch.cuda.max_memory_allocated() / 2**30
    return rows


def _step(
    module: SumOfFeatures, optimizer: torch.optim.Optimizer, config: Config
) -> Callable[[], None]:
    """One update on a batch of noise."""
    pixels, tokens, targets = _batch(module.encoder, config.stage1.batch_size)

    def step() -> None:
        query, target = module(pixels, tokens)
        loss = batch_classification_loss(query, target, targets.cuda(), config.stage1.logit_scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def _embedding(encoder: Encoder, batch_size: int) -> dict[str, float]:
    encoder.trainable("none")
    encoder.to("cuda").precision = "bf16"
    pixels, tokens, _ = _batch(encoder, batch_size)

    def images() -> None:
        with torch.inference_mode():
            encoder.encode_images(pixels)

    def texts() -> None:
        with torch.inference_mode():
            encoder.encode_tokens(tokens)

    return {
        f"embedding, batch {2 * batch_size}, bf16: images/s": 2 * batch_size / _seconds(images),
        f"embedding, batch {batch_size}, bf16: texts/s": batch_size / _seconds(texts),
    }


def _mining(dim: int) -> dict[str, float]:
    """Neighbours of all train images by the processors, then by the GPU where faiss-gpu is
    installed.
    """
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((2000, dim), dtype=np.float32)
    features = centres[rng.integers(0, 2000, TRAIN_IMAGES)]
    features += 0.2 * rng.standard_normal(features.shape, dtype=np.float32)
    settings = MineConfig(neighbours=NEIGHBOURS, batch_size=4096)
    everything = np.arange(TRAIN_IMAGES, dtype=np.int32)
    pools = [mine.Pool("", everything, everything)]
    began = time.perf_counter()
    expected = mine.find_neighbours(features, pools, settings)
    name = f"mining, {TRAIN_IMAGES} x {dim}, top {NEIGHBOURS}"
    rows = {f"{name}: images/s": TRAIN_IMAGES / (time.perf_counter() - began)}
    if mine.FAISS_GPU:
        began = time.perf_counter()
        found = mine.find_neighbours(features, pools, settings, nearest=mine.on_gpu)
        rows[f"{name}, faiss-gpu: images/s"] = TRAIN_IMAGES / (time.perf_counter() - began)
        rows["recall of faiss-gpu against the processors"] = mine.recall(found, expected)
        rows["tables that are not equal"] = float(not found.equals(expected))
    return rows


def _batch(encoder: Encoder, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    side = encoder.preprocess.size
    pixels = torch.randint(
        0, 256, (2 * count, side, side, 3), dtype=torch.uint8, generator=generator
    )
    return pixels, encoder.tokenize(["Is blue and has long sleeves"] * count), torch.arange(count)


def _seconds(step: Callable[[], None], times: int = 20) -> float:
    """Seconds of one step, on average, after three that warm up."""
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / times
