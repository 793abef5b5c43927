"""The sum as a head: the query is L2(x + t), as in stage 1 (eq. 3). It has no weights."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch.nn import functional as F

from raycd.model.fusion.head import Head
from raycd.model.fusion.registry import HeadConfig


class Sum(Head):
    """L2(x + t)."""

    trains: ClassVar[bool] = False

    def forward(self, image_BD: torch.Tensor, text_BD: torch.Tensor) -> torch.Tensor:
        """Return normalised queries (B, D) of un-normalised features (B, D) each."""
        return F.normalize(image_BD + text_BD, dim=-1)


def build(config: HeadConfig) -> Sum:
    """Build the head, which fits any dimension."""
    return Sum()
