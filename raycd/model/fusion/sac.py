"""SAC, semantic attention composition (Jandial et al., arXiv 2009.01485), on frozen CLIP features.

For the middle and the last map X_i, with t_i = Lin t and t' = Lin t without bias:

    S_i = X_i + w_i softmax_p'(q k) v,  q and k of C/8 channels, w start 0     self-attention
    A_i = softmax_p(<t_i, S_i>) S_i,  Y_i = S_i + g_i A_i,  g start 0          where to see
    c   = Lin BN LSTM(BN FC GeM Y_middle, BN FC GeM Y_last)                    how to change
    query L2(c + t')

The training code is not public, and the paper's loss, a triplet loss with discriminator and
consistency terms, is not known in full: here it is the batch-based classification loss (eq. 4).

Deviates: that loss; the target is the pooled CLIP feature, not the same path without a text; CLIP's
layer3 and layer4 in place of ResNet-50's layer2 and layer3, and its text feature in place of a
GRU's; `stage2.dropout` (0.5 by default) where it has 0.1. Implemented from a description, not from
the published model (CC BY-NC-SA).

Shapes: B batch, C channels, H x W positions, P of them, D feature size.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from raycd.model.fusion.batch_norm import BatchNorm
from raycd.model.fusion.dropout import Dropout
from raycd.model.fusion.head import Head
from raycd.model.fusion.positions import Gem
from raycd.model.fusion.registry import HeadConfig
from raycd.model.loss import full_precision

LEVELS = ("middle", "map")


class WhereToSee(nn.Module):
    """One level: self-attention, the text's attention to positions, and the pooled result."""

    def __init__(self, channels: int, dim: int, dropout: float) -> None:
        super().__init__()
        small = max(1, channels // 8)
        self.query = nn.Conv2d(channels, small, 1)
        self.key = nn.Conv2d(channels, small, 1, bias=False)  # the softmax takes a bias away
        self.value = nn.Conv2d(channels, channels, 1)
        self.dropout = Dropout(dropout)
        self.attended, self.seen = (nn.Parameter(torch.zeros(())) for _ in range(2))
        self.text = nn.Linear(dim, channels, bias=False)
        self.pool = Gem()
        self.project = nn.Linear(channels, dim, bias=False)  # the norm takes a bias away
        self.norm = BatchNorm(dim)

    def forward(self, map_BCHW: torch.Tensor, text_BD: torch.Tensor) -> torch.Tensor:
        """Return the level's feature (B, D)."""
        query, key, value = (
            conv(map_BCHW).flatten(2) for conv in (self.query, self.key, self.value)
        )
        weight_BPP = self.dropout((query.transpose(1, 2) @ key).softmax(-1))
        self_BCP = map_BCHW.flatten(2) + self.attended * (value @ weight_BPP.transpose(1, 2))
        weight_BP = (self.text(text_BD)[:, None] @ self_BCP)[:, 0].softmax(-1)
        seen_BCP = self_BCP + self.seen * (weight_BP[:, None] * self_BCP)
        out: torch.Tensor = self.norm(self.project(self.pool(seen_BCP)))
        return out


class Sac(Head):
    """Where to see and how to change."""

    needs = frozenset(LEVELS)
    drops = True

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        dim = config.dim
        self.levels = nn.ModuleDict(
            {level: WhereToSee(config.extra[level][0], dim, config.dropout) for level in LEVELS}
        )
        self.change = nn.LSTM(dim, dim, batch_first=True)
        self.output = nn.Sequential(BatchNorm(dim), nn.Linear(dim, dim))
        self.text = nn.Linear(dim, dim, bias=False)

    def forward(
        self, image_BD: torch.Tensor, text_BD: torch.Tensor, **maps: torch.Tensor
    ) -> torch.Tensor:
        """Return normalised queries (B, D) of both maps and the text feature (B, D)."""
        levels_B2D = torch.stack([self.levels[name](maps[name], text_BD) for name in LEVELS], dim=1)
        with full_precision(image_BD):  # autocast would compute it in float16 on GPUs
            _, (last_1BD, _) = self.change(levels_B2D.float())
        return F.normalize(self.output(last_1BD[0]) + self.text(text_BD), dim=-1)


def build(config: HeadConfig) -> Sac:
    """Build SAC for maps of the shapes in `config.extra`."""
    return Sac(config)
