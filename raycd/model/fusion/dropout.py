"""Dropout that is fast on CPUs, where torch draws each number by itself, ten times slower."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Dropout(nn.Dropout):
    """`nn.Dropout` that cuts its mask out of random words where the features are on a CPU.

    There p is rounded to a multiple of 1 / 65536.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Zero features of any shape with probability p while training and scale up the others."""
        if not self.training or self.p == 0 or input.device.type != "cpu":
            return F.dropout(input, self.p, self.training)
        count = input.numel()
        words = torch.randint(-(2**63), 2**63 - 1, (-(-count // 4),), dtype=torch.int64)
        kept = words.view(torch.int16)[:count].view(input.shape) >= round(self.p * 2**16) - 2**15
        return input * kept.to(input.dtype).mul_(1 / (1 - self.p))
