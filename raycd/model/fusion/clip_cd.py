"""CLIP-CD's fusion (paper 3.2.2, Fig. 2): weighted sum, concatenation and bilinear pooling.

f_I = ReLU FC D->K x,  f_T = ReLU FC D->K t,  K < D       (eq. 5)

f_bil = flatten(f_I outer f_T) in R^(K^2)                 (eq. 6)

f_out = FC drop ReLU FC drop f_bil in R^D                 (eq. 7; the paper has no dropout here)

query = L2(combiner's parts + f_out)
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from raycd.errors import ConfigError
from raycd.model.fusion.combiner import Combiner
from raycd.model.fusion.dropout import Dropout
from raycd.model.fusion.head import Head
from raycd.model.fusion.registry import HeadConfig


class BilinearPooling(nn.Module):
    """Second-order interactions of the two features, through projections of size K (eqs 5 to 7)."""

    def __init__(self, dim: int, bilinear_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.drop = Dropout(dropout)
        self.project_image = nn.Sequential(nn.Linear(dim, bilinear_dim), nn.ReLU())
        self.project_text = nn.Sequential(nn.Linear(dim, bilinear_dim), nn.ReLU())
        self.output = nn.Sequential(nn.Linear(bilinear_dim**2, dim), nn.ReLU(), nn.Linear(dim, dim))

    def forward(self, image_BD: torch.Tensor, text_BD: torch.Tensor) -> torch.Tensor:
        """Return f_out (B, D) of un-normalised features (B, D) each."""
        image_BK, text_BK = self.project_image(image_BD), self.project_text(text_BD)
        outer_BKK = image_BK.unsqueeze(2) * text_BK.unsqueeze(1)
        first, relu, last = self.output
        out: torch.Tensor = last(self.drop(relu(first(self.drop(outer_BKK.flatten(1))))))
        return out


class ClipCd(Head):
    """The comprehensive fusion module."""

    drops: ClassVar[bool] = True

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.combiner = Combiner(config)
        self.bilinear = BilinearPooling(config.dim, config.bilinear_dim, config.bilinear_dropout)

    def forward(self, image_BD: torch.Tensor, text_BD: torch.Tensor) -> torch.Tensor:
        """Return normalised queries (B, D) of un-normalised features (B, D) each."""
        return F.normalize(
            self.combiner.parts(image_BD, text_BD) + self.bilinear(image_BD, text_BD), dim=-1
        )


def build(config: HeadConfig) -> ClipCd:
    """Build a CLIP-CD head. Raises ConfigError unless K < D."""
    if config.bilinear_dim >= config.dim:
        raise ConfigError(
            "stage2.bilinear_dim (K) must be less than the feature size (D)",
            got=f"K = {config.bilinear_dim}, D = {config.dim}",
            expected=f"K from 1 to {config.dim - 1}",
            do=f"give --stage2.bilinear_dim {max(1, config.dim // 2)}",
        )
    return ClipCd(config)
