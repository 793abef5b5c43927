"""The text alone as a head: the query is L2(t). It has no weights.

A row of every comparison: what it reaches, a data set gives away without its reference images.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch.nn import functional as F

from raycd.model.fusion.head import Head
from raycd.model.fusion.registry import HeadConfig


class TextOnly(Head):
    """L2(t)."""

    trains: ClassVar[bool] = False

    def forward(self, image_BD: torch.Tensor, text_BD: torch.Tensor) -> torch.Tensor:
        """Return the normalised features (B, D) of the texts."""
        return F.normalize(text_BD, dim=-1)


def build(config: HeadConfig) -> TextOnly:
    """Build the head, which fits any dimension."""
    return TextOnly()
