"""Layers over the positions of a map and the tokens of a text, which several heads share.

Shapes: B batch, C channels, H x W positions, P = H W, L tokens, E their size, D feature size.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


def with_text(map_BCHW: torch.Tensor, text_BD: torch.Tensor) -> torch.Tensor:
    """Return [X; t] (B, C + D, H, W): the text feature beside the channels of each position."""
    text_BDHW = text_BD[:, :, None, None].expand(-1, -1, *map_BCHW.shape[-2:])
    return torch.cat([map_BCHW, text_BDHW], dim=1)


def masked_softmax(score: torch.Tensor, mask: torch.Tensor, dim: int) -> torch.Tensor:
    """Return the softmax along `dim` of the entries where `mask`, which broadcasts, is true."""
    return score.masked_fill(~mask, -torch.inf).softmax(dim)


class Gem(nn.Module):
    """Generalised mean of a map's positions or a text's tokens: (mean max(x, eps)^p)^(1 / p).

    p is learned and starts at 3. Source: Radenovic et al., TPAMI 2019.
    """

    def __init__(self, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(3.0))
        self.eps = eps

    def forward(self, rows_BCP: torch.Tensor, mask_BP: torch.Tensor | None = None) -> torch.Tensor:
        """Return (B, C) of rows (B, C, P), of those where the mask (B, P) is true."""
        power_BCP = rows_BCP.clamp(min=self.eps).pow(self.p)
        if mask_BP is None:
            return power_BCP.mean(-1).pow(1 / self.p)
        mask_B1P = mask_BP[:, None].to(power_BCP.dtype)
        return ((power_BCP * mask_B1P).sum(-1) / mask_B1P.sum(-1)).pow(1 / self.p)


def unit_sum(*features_BD: torch.Tensor) -> torch.Tensor:
    """Return L2(sum of L2 f), (B, D).

    Its inner product with a unit target y is, up to a factor for each query, that of the
    concatenated unit features with [y; y; ...]: so a method that concatenates several features has
    its ranking in one gallery.
    """
    return F.normalize(F.normalize(torch.stack(features_BD), dim=-1).sum(0), dim=-1)
