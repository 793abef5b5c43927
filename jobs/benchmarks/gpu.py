"""The core without Ray on one GPU: an encoder with random weights, at the settings' batch sizes.

How far features, loss and mined neighbours differ from the CPU's is told beside the times; images,
stage 1 and mining as shares of a large bf16 product's speed on the same card, too. Images of random
weights are nearly alike, so the features of a query speak of its text. It needs raycd's core only
(torch, open_clip, numpy, pyarrow, faiss), so it runs without Ray.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from itertools import product
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from jobs.benchmarks.measuring import check_pooled, chosen, features, in_parts, timed
from jobs.benchmarks.rates import Work, product_rate, seconds, shares
from raycd import mine
from raycd.config import Config, IndexConfig, MineConfig
from raycd.errors import ConfigError
from raycd.index import Index
from raycd.mine.neighbours import normalise
from raycd.mine.search import Shard, search
from raycd.model.compiling import encode_compiled, once
from raycd.model.embed import frozen
from raycd.model.encoder import Encoder, create
from raycd.model.folding import fold_batch_norms
from raycd.model.fusion import HeadBatch
from raycd.model.graphs import RecordedEncoder
from raycd.model.loss import batch_classification_loss
from raycd.model.precision import ARITHMETICS, Arithmetic, use
from raycd.train.finetune import SumOfFeatures
from raycd.train.fuse import HeadLoss, new_head

TRAIN_IMAGES, MANY_IMAGES = 46_609, 1_000_000  # Fashion-IQ's distinct train images; a large shop's
NEIGHBOURS = 64
PARTS = (  # methods of _Card
    *("agreement", "embedding", "queries", "search"),
    *("stage1", "stage2", "mining"),
)
_CHUNKS = {"cuda": 16, "cpu": 2}  # of a batch with cached gradients
_STEPS = 20  # that are measured
_QUERIES = 100  # that are measured, one by one


def measure(config: Config, flags: argparse.Namespace) -> dict[str, Any]:
    """Return agreement with the CPU, rates and peak memory.

    Raises ConfigError without a GPU, unless the device is said to be the CPU.
    """
    parts = chosen(flags.only, PARTS)
    if "stage2" in parts:
        check_pooled(config)
    if config.compute.device != "cpu" and not torch.cuda.is_available():
        do = "run it on a machine with one, or try it with --compute.device cpu"
        raise ConfigError("there is no GPU here", do=do)
    torch.manual_seed(0)
    device = "cpu" if config.compute.device == "cpu" else "cuda"
    many = flags.images or (MANY_IMAGES if device == "cuda" else 0)  # hours on CPUs
    card = _Card(config, many, device)
    rows: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "a large product: TFLOP/s": card.rate / 1e12,
    }
    return rows | in_parts(parts, lambda part: [getattr(card, part)()])


class _Card:
    """One device, and what is measured on it: a method for each of PARTS."""

    def __init__(self, config: Config, many: int, device: str) -> None:
        self.config, self.many, self.device = config, many, device
        self.encoder = create(config.encoder.model_copy(update={"pretrained": ""}))
        self.work = Work.of(self.encoder)
        self.rate = product_rate(device)

    def agreement(self) -> dict[str, float]:
        """Return the largest differences between CPU and device of features and of the loss."""
        pixels, tokens, targets = _batch(self.encoder, 4)
        encoder = deepcopy(self.encoder)
        encoder.trainable("none")
        found: dict[tuple[str, Arithmetic], tuple[torch.Tensor, float]] = {}
        ways: list[tuple[str, Arithmetic]] = list(product(["cpu", "cuda"], ARITHMETICS))
        if self.device == "cpu":
            ways = ways[: len(ARITHMETICS)]
        for device, precision in ways:
            encoder.to(device).precision = use(precision, torch.device(device))
            with torch.inference_mode():
                query, target = SumOfFeatures(encoder)(pixels, tokens)
                loss = batch_classification_loss(query, target, targets.to(device), 100.0)
            found[device, precision] = query.cpu(), float(loss)
        reference, loss_cpu = found[ways[0]]
        rows = {}
        for way in ways[1:]:
            (query, value), name = found[way], " ".join(way)
            difference = float((query - reference).abs().max())
            rows[f"query features, {name} against cpu fp32: largest difference"] = difference
            rows[f"loss, {name} against cpu fp32: difference"] = abs(value - loss_cpu)
        return rows

    def embedding(self) -> dict[str, float]:
        """Time encoding under autocast, with weights held in bf16, and compiled as well."""
        size = self.config.embed.batch_size
        encoder = deepcopy(self.encoder)
        pixels, tokens, _ = _batch(encoder, size)
        encoder.trainable("none")
        encoder.to(self.device).precision = "bf16"
        held = frozen(deepcopy(encoder), "bf16", self.device)
        rows = {}
        for way in ("autocast", "weights in bf16", "compiled"):
            if way == "compiled":
                encode_compiled(held, must=True)
            used = encoder if way == "autocast" else held
            with torch.inference_mode():
                images = 2 * size / self._seconds(partial(used.encode_images, pixels))
                texts = size / self._seconds(partial(used.encode_tokens, tokens))
            name = f"embedding, bf16, {way}, {2 * size} images"
            rows[f"{name}: images/s"] = images
            rows |= shares(name, images * self.work.image, self.rate)
            rows[f"embedding, bf16, {way}, {size} texts: texts/s"] = texts
        return rows

    def queries(self) -> dict[str, float]:
        """Time what the service encodes: queries one by one, then 32 at once."""
        rows = {}
        for precision in ARITHMETICS:
            encoder = deepcopy(self.encoder)
            fold_batch_norms(encoder.eval().clip)
            encoder = frozen(encoder, precision, self.device)
            used: dict[str, Encoder | RecordedEncoder] = {"": encoder}
            if self.device == "cuda":
                used[", CUDA graphs"] = RecordedEncoder(encoder)
            for ending, way in used.items():
                name = f"queries, {precision}{ending}"
                for count in (1, 32):
                    pixels, tokens, _ = _batch(encoder, count)
                    with torch.inference_mode():
                        encode = partial(_encode, way, pixels[:count], tokens)
                        spent = [timed(encode)[1] for _ in range(_QUERIES)]
                    rows[f"{name}, {count} at once: p50, ms"] = 1000 * median(spent)
        return rows

    def search(self) -> dict[str, float]:
        """Time the exact search of a gallery's index on CPUs and on the device."""
        count, dim = self.many or TRAIN_IMAGES, self.encoder.dim
        feature_GD = features(count, dim)
        index = Index.build(feature_GD, IndexConfig(kind="flat"))
        query_BD = normalise(feature_GD, np.arange(32, dtype=np.int32))
        rows = {}
        for device in dict.fromkeys(["cpu", self.device]):
            used = index.on(device)
            for number, times in ((1, _QUERIES), (32, _STEPS)):
                find = partial(used.search, query_BD[:number], 10)
                spent = [timed(find)[1] for _ in range(times)]
                name = f"search, {count} x {dim}, {device}, {number} at once"
                rows[f"{name}: p50, ms"] = 1000 * median(spent)
        return rows

    def stage1(self) -> dict[str, float]:
        """Time stage 1's step, bf16, on noise: as it is, with gradient checkpointing, compiled.

        Of cached gradients, too, a greater batch in chunks of the settings' batch.
        """
        greater = _CHUNKS[self.device] * self.config.stage1.batch_size
        rows = self._stage1() | self._stage1("checkpointing") | self._stage1("compiled")
        return rows | self._stage1("cached gradients", greater)

    def _stage1(self, way: str = "", batch: int = 0) -> dict[str, float]:
        stage1, encoder = self.config.stage1, deepcopy(self.encoder)
        size = batch or stage1.batch_size
        encoder.to(self.device).precision = "bf16"
        encoder.trainable("both", grad_checkpointing=way == "checkpointing")
        if way == "compiled":
            encode_compiled(encoder, must=True, trains=True)
        module = SumOfFeatures(encoder, stage1.batch_size if batch else 0)
        trained = [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=2e-6, fused=True)
        pixels, tokens, targets = _batch(encoder, size)

        def step() -> None:
            query, target = module(pixels, tokens)
            own = targets.to(self.device)
            loss = batch_classification_loss(query, target, own, stage1.logit_scale)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch
            optimizer.step()

        name = f"stage 1, bf16, batch {size}{way and ', '}{way}"
        rate, memory = self._rate(step, size)
        rows = {f"{name}: triplets/s": rate, f"{name}: peak GiB": memory}
        # What checkpointing and cached gradients compute again does not count
        return rows | shares(name, rate * self.work.triplet, self.rate)

    def stage2(self) -> dict[str, float]:
        """Time stage 2's step on cached features, in fp32 and in bf16, and compiled as well."""
        return self._stage2("fp32") | self._stage2("bf16") | self._stage2("bf16", compiled=True)

    def _stage2(self, precision: Arithmetic, *, compiled: bool = False) -> dict[str, float]:
        settings = self.config.stage2
        head, _ = new_head(self.config, self.encoder.dim)
        module = HeadLoss(head.to(self.device), settings.logit_scale)
        forward = once(module.forward, must=True, trains=True) if compiled else module.forward
        optimizer = torch.optim.Adam(module.parameters(), lr=settings.lr, fused=True)
        shape = (3, settings.batch_size, self.encoder.dim)
        targets = torch.arange(settings.batch_size, device=self.device)
        image_BD, text_BD, target_BD = torch.randn(shape, device=self.device)
        batch = HeadBatch(image_BD, text_BD, target_BD, targets)

        def step() -> None:
            with torch.autocast(self.device, torch.bfloat16, enabled=precision == "bf16"):
                loss: torch.Tensor = forward(batch)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch
            optimizer.step()

        rate, _ = self._rate(step, settings.batch_size)
        ending = f"{precision}{', compiled' * compiled}"
        return {f"stage 2, {ending}, batch {settings.batch_size}: triplets/s": rate}

    def mining(self) -> dict[str, float]:
        """Find the neighbours of all train images as the CPUs do, then of many more alone."""
        rows, table = self._mining(TRAIN_IMAGES, self.device)
        if self.device == "cuda":
            on_cpus, expected = self._mining(TRAIN_IMAGES, "cpu")
            rows |= on_cpus | {"tables that are not equal": float(not table.equals(expected))}
        if self.many > TRAIN_IMAGES:
            rows |= self._mining(self.many, self.device)[0]
        return rows

    def _mining(self, count: int, device: str) -> tuple[dict[str, float], pa.Table]:
        dim = self.encoder.dim
        feature_ND, everything = features(count, dim), np.arange(count, dtype=np.int32)
        # Without a floor every list is full
        settings = MineConfig(neighbours=NEIGHBOURS, batch_size=4096, floor=-1.0)
        pools = [mine.Pool("", everything, everything)]
        find = partial(mine.find_neighbours, feature_ND, pools, settings, device=device)
        if device == "cuda" and count == TRAIN_IMAGES:
            find()  # warms up
        table, spent = timed(find)
        name = f"mining, {count} x {dim}, top {NEIGHBOURS}, {device}"
        rows = {f"{name}: images/s": count / spent}
        if device == "cuda":
            unit_ND = normalise(feature_ND, everything)
            shard = [Shard(unit_ND, everything)]
            _, alone = timed(lambda: search(everything, unit_ND, shard, settings, device=device))
            rows[f"{name}, features normalised: images/s"] = count / alone
            rows |= shares(f"{name}, normalised", 2 * count**2 * dim / alone, self.rate)
        return rows, table

    def _seconds(self, step: Callable[[], object]) -> float:
        return seconds(step, self.device, times=_STEPS)

    def _rate(self, step: Callable[[], object], count: int) -> tuple[float, float]:
        """Return how many a second `step` does, `count` at a time, and its peak of memory, GiB."""
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        rate = count / self._seconds(step)
        memory = torch.cuda.max_memory_allocated() if self.device == "cuda" else 0
        return rate, memory / 2**30


def _batch(encoder: Encoder, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (2 * count, *encoder.preprocess.size, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return pixels, encoder.tokenize(["Is blue and has long sleeves"] * count), torch.arange(count)


def _encode(
    way: Encoder | RecordedEncoder, pixels: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return way.encode_images(pixels).cpu(), way.encode_tokens(tokens).cpu()
