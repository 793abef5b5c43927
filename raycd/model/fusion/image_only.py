"""The image alone as a head: the query is L2(x). It has no weights.

A row of every comparison: what it reaches, a data set gives away without its texts.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch.nn import functional as F

from raycd.model.fusion.head import Head
from raycd.model.fusion.registry import HeadConfig


class ImageOnly(Head):
    """L2(x)."""

    trains: ClassVar[bool] = False

    def forward(self, image_BD: torch.Tensor, text_BD: torch.Tensor) -> torch.Tensor:
        """Return the normalised features (B, D) of the images."""
        return F.normalize(image_BD, dim=-1)


def build(config: HeadConfig) -> ImageOnly:
    """Build the head, which fits any dimension."""
    return ImageOnly()
