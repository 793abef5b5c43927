"""VAL, visiolinguistic attention learning (Chen, Gong and Bazzani, CVPR 2020), on frozen CLIP.

At each level i, the middle and the last map, a composite transformer of its own:

    V   = conv1x1 [X_i; t];  q, k, v = Lin V, h = 2 heads
    S   = conv1x1 (dropout(softmax_p'(k v^T / sqrt(C/h))) q)                   self-attention
    J   = sigmoid(conv1x1 of mean_p V) sigmoid(conv HxW of mean_c V)           joint attention
    F_i = w_r J X_i + w_s S,  f_i = FC mean_p F_i                              w start 1 and 0
    query  L2(sum_i L2 f_i)
    loss   sum_i of hinges [m + d(f_i, y) - d(f_i, n)]+ and [m + d(y, f_i) - d(y, n)]+
           d squared distance of unit features, m = 0.2, n the semi-hard negative of the batch

The roles of q and v in S are those of the published code. Deviates: two levels of three; CLIP's
features in place of ResNet-50's and an LSTM's; an FC to D for each level, so that both are compared
with the target's pooled feature, where the paper compares each with the target's own level;
`stage2.dropout` (0.5 by default) where it has 0.1; no L_vs (image-text matching with side
information).

Shapes: B batch, C channels, H x W positions, P of them, D feature size, N targets of all workers.
"""

from __future__ import annotations

from math import gcd

import torch
from torch import nn
from torch.nn import functional as F

from raycd.distributed import gather, own_rows
from raycd.model.fusion.dropout import Dropout
from raycd.model.fusion.head import Head, HeadBatch
from raycd.model.fusion.positions import unit_sum, with_text
from raycd.model.fusion.registry import HeadConfig
from raycd.model.loss import full_precision, same_images

MARGIN = 0.2
LEVELS = ("middle", "map")


class CompositeTransformer(nn.Module):
    """The composition of one level."""

    def __init__(self, shape: list[int], dim: int, dropout: float) -> None:
        super().__init__()
        channels, height, width = shape
        self.heads = gcd(2, channels)
        self.fuse = nn.Conv2d(channels + dim, channels, 1)
        size = channels // self.heads
        self.query, self.key = nn.Linear(size, size), nn.Linear(size, size)
        self.value = nn.Linear(size, size, bias=False)  # the softmax takes a bias away
        self.dropout = Dropout(dropout)
        self.output = nn.Conv2d(channels, channels, 1)
        self.channel = nn.Conv2d(channels, channels, 1)
        self.place = nn.Sequential(
            nn.ZeroPad2d(((width - 1) // 2, width // 2, (height - 1) // 2, height // 2)),
            nn.Conv2d(1, 1, (height, width)),
        )
        self.residual, self.attended = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))
        self.project = nn.Linear(channels, dim)

    def forward(self, map_BCHW: torch.Tensor, text_BD: torch.Tensor) -> torch.Tensor:
        """Return f_i (B, D), not normalised."""
        fused = self.fuse(with_text(map_BCHW, text_BD))
        joint = self.channel(fused.mean((2, 3), keepdim=True)).sigmoid()
        joint = joint * self.place(fused.mean(1, keepdim=True)).sigmoid()
        composed = self.residual * joint * map_BCHW + self.attended * self.self_attention(fused)
        out: torch.Tensor = self.project(composed.mean((2, 3)))
        return out

    def self_attention(self, fused_BCHW: torch.Tensor) -> torch.Tensor:
        """Return S (B, C, H, W)."""
        batch, _, height, width = fused_BCHW.shape
        rows_BhPc = fused_BCHW.reshape(batch, self.heads, -1, height * width).transpose(2, 3)
        query, key, value = self.query(rows_BhPc), self.key(rows_BhPc), self.value(rows_BhPc)
        weight = (key @ value.transpose(2, 3) * key.shape[-1] ** -0.5).softmax(-1)
        mixed = (self.dropout(weight) @ query).transpose(2, 3).flatten(1, 2)
        out: torch.Tensor = self.output(mixed.view_as(fused_BCHW))
        return out


class Val(Head):
    """Composite transformers of the middle and the last map."""

    needs = frozenset(LEVELS)
    drops = True

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.levels = nn.ModuleDict(
            {
                level: CompositeTransformer(config.extra[level], config.dim, config.dropout)
                for level in LEVELS
            }
        )

    def parts(self, text_BD: torch.Tensor, **maps: torch.Tensor) -> list[torch.Tensor]:
        """Return f_i (B, D) of each level, not normalised."""
        return [self.levels[level](maps[level], text_BD) for level in LEVELS]

    def forward(
        self, image_BD: torch.Tensor, text_BD: torch.Tensor, **maps: torch.Tensor
    ) -> torch.Tensor:
        """Return normalised queries (B, D) of both maps and the text feature (B, D)."""
        return unit_sum(*self.parts(text_BD, **maps))

    def training_loss(self, batch: HeadBatch, logit_scale: float) -> torch.Tensor:
        """Return the sum of the levels' bidirectional hinges with semi-hard negatives."""
        parts = self.parts(batch.text_BD, **batch.extra)
        with full_precision(batch.text_BD):
            return torch.stack(
                [
                    hinge(part.float(), batch.target_BD, batch.target_B, batch.right_BT)
                    for part in parts
                ]
            ).sum()


def hinge(
    query_BD: torch.Tensor,
    target_BD: torch.Tensor,
    target_B: torch.Tensor,
    right_BT: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the mean of the hinges of queries to targets plus that of targets to queries.

    Negatives are of all workers. A target that is right for a query is none of it, nor the query of
    the target (`HeadBatch.target_B` and `right_BT`).
    """
    query, target = F.normalize(query_BD, dim=-1), F.normalize(target_BD, dim=-1)
    own, number_N = own_rows(len(query), query.device), gather(target_B)
    right_NT = None if right_BT is None else gather(right_BT)
    negative_NN = ~same_images(number_N, number_N[None], right_NT)
    to_targets = semi_hard(2 - 2 * query @ gather(target).T, own, negative_NN[own])
    to_queries = semi_hard(2 - 2 * target @ gather(query).T, own, negative_NN[:, own].T)
    return to_targets + to_queries


def semi_hard(
    distance_BN: torch.Tensor, own_B: torch.Tensor, negative_BN: torch.Tensor
) -> torch.Tensor:
    """Return the mean of [m + d(positive) - d(negative)]+, 0 for rows without a negative.

    The negative is the nearest of those farther than the positive, or else the farthest of all.
    """
    positive_B1 = distance_BN.gather(1, own_B[:, None])
    farther = negative_BN & (distance_BN > positive_B1)
    nearest_B = distance_BN.masked_fill(~farther, torch.inf).amin(1)
    farthest_B = distance_BN.masked_fill(~negative_BN, -torch.inf).amax(1)
    chosen_B = torch.where(farther.any(1), nearest_B, farthest_B)
    found_B = F.relu(MARGIN + positive_B1[:, 0] - chosen_B)
    return torch.where(negative_BN.any(1), found_B, 0.0).mean()


def build(config: HeadConfig) -> Val:
    """Build VAL for maps of the shapes in `config.extra`."""
    return Val(config)
