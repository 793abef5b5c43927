"""A head after the abstract of HFFCA; not verified.

HFFCA is heterogeneous feature fusion and cross-modal alignment (Zhang et al., MM 2021, doi
10.1145/3474085.3475659), "Heteroge" in Table 1. Its full text and code could not be had. The
abstract names three parts; their formulas here are our choice.

    MCF   R = Lin X,  W = Lin E;  R' = R + Attn(R; W),  W' = W + Attn(W; R)   positions and words
    CGP   r = sum_p softmax_p(<R'_p, Lin t> / sqrt D) R'_p   guided by the text
          w = sum_l softmax_l(<W'_l, Lin x> / sqrt D) W'_l   guided by the image
    query L2(x + t + FC [r; w])
    loss  eq. 4 + 0.5 RCC,  RCC = eq. 4 of FC w: the caption alone against the target image

MCF multi-modal complementary fusion, CGP cross-modal guided pooling, RCC relative caption-aware
consistency.

Shapes: B batch, C channels, H x W positions, P of them, L tokens, E their size, D feature size.
"""

from __future__ import annotations

from math import gcd

import torch
from torch import nn
from torch.nn import functional as F

from raycd.model.fusion.dropout import Dropout
from raycd.model.fusion.head import Head, HeadBatch
from raycd.model.fusion.positions import masked_softmax
from raycd.model.fusion.registry import HeadConfig

CONSISTENCY = 0.5


class Hffca(Head):
    """Interaction of positions and words, and the pooling of each guided by the other."""

    needs = frozenset({"map", "tokens"})
    drops = True
    classifies = True

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        dim, heads = config.dim, gcd(8, config.dim)
        self.places = nn.Linear(config.extra["map"][0], dim)
        self.words = nn.Linear(config.extra["tokens"][-1], dim)
        self.to_places, self.to_words = (
            nn.MultiheadAttention(dim, heads, config.dropout, batch_first=True) for _ in range(2)
        )
        self.guide_of_places, self.guide_of_words = (
            nn.Linear(dim, dim, bias=False) for _ in range(2)
        )
        self.output = nn.Sequential(Dropout(config.dropout), nn.Linear(2 * dim, dim))
        self.caption = nn.Linear(dim, dim)

    def parts(
        self,
        image_BD: torch.Tensor,
        text_BD: torch.Tensor,
        map_BCHW: torch.Tensor,
        tokens_BLE: torch.Tensor,
        mask_BL: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the normalised queries (B, D) and w (B, D)."""
        position_BPD = self.places(map_BCHW.flatten(2).transpose(1, 2))
        word_BLD = self.words(tokens_BLE)
        said, _ = self.to_places(position_BPD, word_BLD, word_BLD, key_padding_mask=~mask_BL)
        shown, _ = self.to_words(word_BLD, position_BPD, position_BPD)
        position_BPD, word_BLD = position_BPD + said, word_BLD + shown
        everywhere = torch.ones_like(position_BPD[..., 0], dtype=torch.bool)
        position_BD = guided_pool(position_BPD, self.guide_of_places(text_BD), everywhere)
        word_BD = guided_pool(word_BLD, self.guide_of_words(image_BD), mask_BL)
        fused_BD = self.output(torch.cat([position_BD, word_BD], dim=-1))
        return F.normalize(image_BD + text_BD + fused_BD, dim=-1), word_BD

    def forward(
        self,
        image_BD: torch.Tensor,
        text_BD: torch.Tensor,
        *,
        map: torch.Tensor,
        tokens: torch.Tensor,
        token_mask: torch.Tensor,
    ) -> torch.Tensor:
        """Return normalised queries (B, D) of pooled features, the map, and the tokens."""
        return self.parts(image_BD, text_BD, map, tokens, token_mask)[0]

    def training_loss(self, batch: HeadBatch, logit_scale: float) -> torch.Tensor:
        """Return eq. 4 and the consistency of the caption with the target."""
        given = (batch.extra[name] for name in ("map", "tokens", "token_mask"))
        query_BD, word_BD = self.parts(batch.image_BD, batch.text_BD, *given)
        fused, caption = (
            batch.classification_loss(one_BD, logit_scale)
            for one_BD in (query_BD, self.caption(word_BD))
        )
        return fused + CONSISTENCY * caption


def guided_pool(
    rows_BND: torch.Tensor, guide_BD: torch.Tensor, mask_BN: torch.Tensor
) -> torch.Tensor:
    """Return the rows' mean (B, D), weighted by the softmax of their products with the guide."""
    score_BN = (rows_BND @ guide_BD[..., None])[..., 0] * rows_BND.shape[-1] ** -0.5
    weight_BN = masked_softmax(score_BN, mask_BN, dim=-1)
    return (weight_BN[:, None] @ rows_BND)[:, 0]


def build(config: HeadConfig) -> Hffca:
    """Build the head for the map and tokens of the shapes in `config.extra`."""
    return Hffca(config)
