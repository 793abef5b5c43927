"""Combiner of Clip4Cir (Baldrati et al., 2022), the weighted sum and concatenation of CLIP-CD.

p_x = drop ReLU Lin D->P x,  p_t likewise;  h = [p_t; p_x]
v   = Lin H->D drop ReLU Lin 2P->H h                      (concatenation)
l   = sigmoid Lin H->1 drop ReLU Lin 2P->H h              (weight of the sum)
query = L2(v + l t + (1 - l) x),  P = 4 D, H = 8 D by default
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from raycd.model.fusion.dropout import Dropout
from raycd.model.fusion.head import Head
from raycd.model.fusion.registry import HeadConfig


class Combiner(Head):
    """Weighted sum plus concatenation."""

    drops: ClassVar[bool] = True

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        dim, projection = config.dim, config.projection_dim or 4 * config.dim
        hidden = config.hidden_dim or 8 * config.dim
        drop = Dropout(config.dropout)
        self.project_text = nn.Sequential(nn.Linear(dim, projection), nn.ReLU(), drop)
        self.project_image = nn.Sequential(nn.Linear(dim, projection), nn.ReLU(), drop)
        self.concatenation = nn.Sequential(
            nn.Linear(2 * projection, hidden), nn.ReLU(), drop, nn.Linear(hidden, dim)
        )
        self.weight = nn.Sequential(
            nn.Linear(2 * projection, hidden), nn.ReLU(), drop, nn.Linear(hidden, 1), nn.Sigmoid()
        )

    def parts(self, image_BD: torch.Tensor, text_BD: torch.Tensor) -> torch.Tensor:
        """Return v + l t + (1 - l) x (B, D), before normalisation, of raw features (B, D) each."""
        both = torch.cat([self.project_text(text_BD), self.project_image(image_BD)], dim=-1)
        weight = self.weight(both)
        combined: torch.Tensor = (
            self.concatenation(both) + weight * text_BD + (1 - weight) * image_BD
        )
        return combined

    def forward(self, image_BD: torch.Tensor, text_BD: torch.Tensor) -> torch.Tensor:
        """Return normalised queries (B, D) of un-normalised features (B, D) each."""
        return F.normalize(self.parts(image_BD, text_BD), dim=-1)


def build(config: HeadConfig) -> Combiner:
    """Build a Combiner of the sizes in `config`."""
    return Combiner(config)
