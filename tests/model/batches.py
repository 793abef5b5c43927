"""Batches of triplets for the losses of heads."""

import torch

from raycd.model.fusion import HeadBatch


def batch(rows: int, dim: int, numbers: list[int] | None = None) -> HeadBatch:
    """Return a batch; targets of equal numbers are equal."""
    generator = torch.Generator().manual_seed(2)
    image, text, target = (2 * torch.randn(rows, dim, generator=generator) for _ in range(3))
    target_B = torch.tensor(numbers) if numbers else torch.arange(rows)
    return HeadBatch(image, text, target[target_B % rows], target_B)
