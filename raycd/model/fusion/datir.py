"""A head after the abstract of DATIR; not verified.

DATIR is Gu et al., MM 2021, doi 10.1145/3474085.3475619. Its full text and code could not be had.
The abstract names two terms: "attention mutual information maximisation", between the text's
feature and what a difference transformer reads from reference and target, and "hierarchical mutual
information maximisation", between one layer of the fusion network and several layers of the
target's image encoder. All else here is our choice.

    fusion       h = the text's position of Transformer([Lin t; Lin X_last; Lin X_middle])
    query        L2(x + t + FC h)
    difference   d = position 1 of Transformer([e; Lin X_last + r; Lin X_last of target + r'])
    loss         eq. 4 + w I(FC d, t) + w sum_i I(FC_i h, FC_i mean_p X_i of target),  w = 0.1

I is InfoNCE with a scale of 10 (van den Oord et al. 2018), the classification loss of one side
among the batch's other sides: the less it is, the greater a lower bound of their information.

Shapes: B batch, C channels, H x W positions, P of them, D feature size.
"""

from __future__ import annotations

from math import gcd

import torch
from torch import nn
from torch.nn import functional as F

from raycd.model.fusion.head import Head, HeadBatch
from raycd.model.fusion.registry import HeadConfig
from raycd.model.loss import batch_classification_loss, full_precision

LEVELS = ("map", "middle")
WEIGHT, SCALE = 0.1, 10.0


def transformer(dim: int, dropout: float) -> nn.TransformerEncoderLayer:
    """Return a block over rows of size `dim`."""
    return nn.TransformerEncoderLayer(
        dim, gcd(8, dim), 2 * dim, dropout, batch_first=True, norm_first=True
    )


def positions(map_BCHW: torch.Tensor) -> torch.Tensor:
    """Return a map's positions as rows (B, P, C)."""
    return map_BCHW.flatten(2).transpose(1, 2)


class Datir(Head):
    """Fusion, and a difference transformer that only training uses."""

    needs = frozenset(LEVELS)
    needs_of_target = frozenset(LEVELS)
    drops = True
    classifies = True

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        dim, channels = config.dim, {level: config.extra[level][0] for level in LEVELS}
        self.read = nn.ModuleDict({level: nn.Linear(channels[level], dim) for level in LEVELS})
        self.text = nn.Linear(dim, dim)
        self.fusion, self.difference = (transformer(dim, config.dropout) for _ in range(2))
        self.output, self.difference_output = nn.Linear(dim, dim), nn.Linear(dim, dim)
        # [e; r; r']: the first row of the difference transformer, and whose position another is
        self.roles = nn.Parameter(0.02 * torch.randn(3, dim))
        self.query_side = nn.ModuleDict({level: nn.Linear(dim, dim) for level in LEVELS})
        self.target_side = nn.ModuleDict(
            {level: nn.Linear(channels[level], dim) for level in LEVELS}
        )

    def fused(self, text_BD: torch.Tensor, **maps: torch.Tensor) -> torch.Tensor:
        """Return h (B, D)."""
        rows = [self.read[level](positions(maps[level])) for level in LEVELS]
        out: torch.Tensor = self.fusion(torch.cat([self.text(text_BD)[:, None], *rows], 1))[:, 0]
        return out

    def differing(self, reference_BCHW: torch.Tensor, target_BCHW: torch.Tensor) -> torch.Tensor:
        """Return FC d (B, D) of the last maps of both images."""
        read = self.read["map"]
        first, of_reference, of_target = self.roles
        rows = torch.cat(
            [
                first.expand(len(reference_BCHW), 1, -1),
                read(positions(reference_BCHW)) + of_reference,
                read(positions(target_BCHW)) + of_target,
            ],
            dim=1,
        )
        out: torch.Tensor = self.difference_output(self.difference(rows)[:, 0])
        return out

    def query(
        self, image_BD: torch.Tensor, text_BD: torch.Tensor, fused_BD: torch.Tensor
    ) -> torch.Tensor:
        """Return normalised queries (B, D)."""
        return F.normalize(image_BD + text_BD + self.output(fused_BD), dim=-1)

    def forward(
        self, image_BD: torch.Tensor, text_BD: torch.Tensor, **maps: torch.Tensor
    ) -> torch.Tensor:
        """Return normalised queries (B, D) of pooled features (B, D) and both maps."""
        return self.query(image_BD, text_BD, self.fused(text_BD, **maps))

    def training_loss(self, batch: HeadBatch, logit_scale: float) -> torch.Tensor:
        """Return eq. 4 and the two terms of mutual information."""
        fused_BD = self.fused(batch.text_BD, **batch.extra)
        query_BD = self.query(batch.image_BD, batch.text_BD, fused_BD)
        found = batch.classification_loss(query_BD, logit_scale)
        pairs = [
            (self.differing(batch.extra["map"], batch.target_extra["map"]), batch.text_BD),
            *(
                (
                    self.query_side[level](fused_BD),
                    self.target_side[level](batch.target_extra[level].mean((2, 3))),
                )
                for level in LEVELS
            ),
        ]
        for one_BD, other_BD in pairs:
            with full_precision(one_BD):
                found = found + WEIGHT * batch_classification_loss(
                    one_BD, other_BD, batch.target_B, SCALE, batch.right_BT
                )
        return found


def build(config: HeadConfig) -> Datir:
    """Build the head for maps of the shapes in `config.extra`."""
    return Datir(config)
