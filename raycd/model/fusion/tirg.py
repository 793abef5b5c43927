"""TIRG's composition (Vo et al., CVPR 2019, arXiv 1812.07119), its fully connected form.

c = [x; t]
gate     g = Lin 2D->D ReLU BN c
residual r = Lin 2D->D ReLU Lin 2D->2D ReLU BN c
f = w_g sigmoid(g) * x + w_r r,  the gated feature and the residual; w_g, w_r learned, first 1, 10
loss: batch-based classification of s f / |f| over the targets s y / |y|, s learned, 4 at first; so
its logits are s^2 cos(f, y), and stage2.logit_scale is not used.

What differs from the paper: x, t and y are features of the frozen CLIP, of one size D, instead of
those of a ResNet and an LSTM trained with it. Sizes, order and first values are those of the
authors' code (google/tirg), which the paper does not print; the paper's 3 x 3 convolutions are for
feature maps. It is TIRG's composition on CLIP features, not TIRG as published.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from raycd.model.fusion.batch_norm import BatchNorm
from raycd.model.fusion.head import Head, HeadBatch
from raycd.model.fusion.registry import HeadConfig


class GatedResidual(nn.Module):
    """The gated feature plus the residual, both of what is concatenated, of size `merged`."""

    def __init__(self, dim: int, merged: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(BatchNorm(merged), nn.ReLU(), nn.Linear(merged, dim))
        self.residual = nn.Sequential(
            BatchNorm(merged),
            nn.ReLU(),
            nn.Linear(merged, 2 * dim),
            nn.ReLU(),
            nn.Linear(2 * dim, dim),
        )
        self.gate_weight = nn.Parameter(torch.tensor(1.0))
        self.residual_weight = nn.Parameter(torch.tensor(10.0))

    def forward(self, image_BD: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        """Return f (B, D) of the image's features and of those that are concatenated to them."""
        both = torch.cat([image_BD, *others], dim=-1)
        gated_BD = torch.sigmoid(self.gate(both)) * image_BD
        found: torch.Tensor = self.gate_weight * gated_BD + self.residual_weight * self.residual(
            both
        )
        return found


class Tirg(Head):
    """TIRG's composition, with the learned scale of its loss."""

    classifies = True

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.compose = GatedResidual(config.dim, 2 * config.dim)
        self.scale = nn.Parameter(torch.tensor(4.0))

    def forward(self, image_BD: torch.Tensor, text_BD: torch.Tensor) -> torch.Tensor:
        """Return normalised queries (B, D) of un-normalised features (B, D) each."""
        return F.normalize(self.compose(image_BD, text_BD), dim=-1)

    def training_loss(self, batch: HeadBatch, logit_scale: float) -> torch.Tensor:
        """Return the batch-based classification loss at the learned scale."""
        query_BD = self(batch.image_BD, batch.text_BD)
        return batch.classification_loss(query_BD, self.scale.square())


def build(config: HeadConfig) -> Tirg:
    """Build a TIRG head; of the sizes in `config` it has D alone."""
    return Tirg(config)
