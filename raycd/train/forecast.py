"""How long the demo will take on this machine, to be told before it begins."""

from __future__ import annotations

import time

import torch

from raycd.config import Config, EncoderConfig, presets
from raycd.model import threads
from raycd.model.encoder import create
from raycd.train.pretrain import DEMO_MODEL, Contrast

BATCH = 64
# The demo's seconds are these, which Ray and the data take, and so many times those of a batch:
# fitted to one machine of two cores, where a batch takes 0.204 s and the demo took 481 s.
FIXED_S, BATCHES = 40.0, 2160


def knows(config: Config) -> bool:
    """Return whether it is known what a run of these settings costs: the demo's own, on CPUs."""
    demo = Config.model_validate(presets.load("demo"))
    sections = ("data", "encoder", "pretrain", "stage1", "stage2")
    as_there = all(getattr(config, name) == getattr(demo, name) for name in sections)
    return as_there and not torch.cuda.is_available()


def demo_seconds() -> float:
    """Return about how many seconds the demo takes on the CPUs here, from a few batches."""
    before = torch.get_num_threads()
    threads.use(threads.usable_cpus())  # as pre-training does, beside other programs, too
    encoder = create(EncoderConfig(name=DEMO_MODEL, pretrained=""))
    model = Contrast(encoder).train()
    size = encoder.preprocess.size[0]
    pixels = torch.zeros(BATCH, size, size, 3, dtype=torch.uint8)
    tokens = encoder.tokenize(["a photo of a red dress"] * BATCH)
    batches = []
    for _ in range(4):  # the first one is slower, and so is what comes before a look at others
        began = time.perf_counter()
        model(pixels, tokens).sum().backward()
        batches.append(time.perf_counter() - began)
    torch.set_num_threads(before)
    return FIXED_S + BATCHES * min(batches)
