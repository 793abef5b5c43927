"""What a device could do at most, and how many operations an encoder's work is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from jobs.benchmarks.measuring import timed
from raycd.model.encoder import Encoder

# The square matrices whose product is timed: not every CPU multiplies bf16
_MATRICES = {"cuda": (8192, torch.bfloat16), "cpu": (1024, torch.float32)}
_WARM_UP, _TIMES = 3, 10
_STEP = 3  # times the operations of a forward pass: its backward pass has two of them


@dataclass(frozen=True)
class Work:
    """Floating-point operations of a forward pass, products and convolutions alone."""

    image: int
    text: int

    @property
    def triplet(self) -> int:
        """Return those of a triplet in stage 1: two images and a text, forwards and backwards."""
        return _STEP * (2 * self.image + self.text)

    @classmethod
    def of(cls, encoder: Encoder) -> Work:
        """Count those of an encoder, where it is."""
        pixels = torch.zeros((1, *encoder.preprocess.size, 3), dtype=torch.uint8)
        tokens = encoder.tokenize(["is blue"])
        return cls(
            counted(lambda: encoder.encode_images(pixels)),
            counted(lambda: encoder.encode_tokens(tokens, whole=True)),
        )


def counted(work: Callable[[], object]) -> int:
    """Return the operations of `work`. Compiled functions and fused encoder layers hide theirs."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            work()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return int(counter.get_total_flops())


def seconds(step: Callable[[], object], device: str, *, times: int = _TIMES) -> float:
    """Return the seconds of one step, on average, after three that warm up."""

    def steps(count: int) -> None:
        for _ in range(count):
            step()
        if device == "cuda":
            torch.cuda.synchronize()

    steps(_WARM_UP)
    return timed(lambda: steps(times))[1] / times


def product_rate(device: str) -> float:
    """Return the operations a second of a large product, in bf16 on a GPU, in fp32 on CPUs."""
    side, kind = _MATRICES[device]
    one, other = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    return 2 * side**3 / seconds(lambda: one @ other, device)


def shares(name: str, operations_per_s: float, rate: float) -> dict[str, float]:
    """Return the rows that state a speed in operations, and as a share of the product's rate."""
    return {
        f"{name}: TFLOP/s": operations_per_s / 1e12,
        f"{name}: share of the product's rate": operations_per_s / rate,
    }
