"""CoSMo's content and style modulators (Lee, Kim and Han, CVPR 2021) on frozen CLIP features.

X the last map, t the text feature, N = (X - mu) / sigma over the positions of each channel.

    content   Y = N + w1 A1(N, t),  Z = Y + w2 A2(Y, t)                    w start 1
    A(Y, t)   M = conv [Y; t],  v = conv M,  q = conv Y,  k = conv Y       1 x 1, h = 8 heads
              W = softmax_p'(q k / sqrt(C/h)) + softmax_p'(<Y_p', FC t> / sqrt(C/h)),  A = conv(W v)
    style     F = (g_s sigma + ga) Z + (g_m mu + be)
              (g_s, g_m) = sigmoid(EqLin t),  (ga, be) = EqLin t           bias start 1 and 0
    query     L2(FC mean_p F)
    loss      batch-based classification with logits s^2 cos, s = 4 fixed: 16

Deviates: the target is the frozen encoder's pooled feature, not the same FC of the target's map; a
CLIP map in place of ResNet-50's, and CLIP's text feature in place of an LSTM's.

Shapes: B batch, C channels, H x W positions (P of them), D feature size, h heads.
"""

from __future__ import annotations

from math import gcd

import torch
from torch import nn
from torch.nn import functional as F

from raycd.model.fusion.head import Head, HeadBatch
from raycd.model.fusion.positions import with_text
from raycd.model.fusion.registry import HeadConfig

SCALE = 4.0  # length of query and target
EPS = 1e-5


class EqualisedLinear(nn.Linear):
    """A linear layer of weights drawn from N(0, 1), times sqrt(2 / fan-in) where it is used."""

    def __init__(self, given: int, made: int, bias: float) -> None:
        super().__init__(given, made)
        nn.init.normal_(self.weight)
        nn.init.constant_(self.bias, bias)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return (..., made) of (..., given)."""
        return F.linear(input, self.weight * (2 / self.in_features) ** 0.5, self.bias)


class ContentAttention(nn.Module):
    """A(Y, t): attention among positions, and of the text to positions."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.heads = gcd(8, channels)
        self.merge = nn.Conv2d(channels + dim, channels, 1)
        self.query, self.value, self.output = (nn.Conv2d(channels, channels, 1) for _ in range(3))
        self.key = nn.Conv2d(channels, channels, 1, bias=False)  # the softmax takes a bias away
        self.text = nn.Linear(dim, channels)

    def forward(self, map_BCHW: torch.Tensor, text_BD: torch.Tensor) -> torch.Tensor:
        """Return (B, C, H, W)."""
        value = self._split(self.value(self.merge(with_text(map_BCHW, text_BD))))
        query, key = self._split(self.query(map_BCHW)), self._split(self.key(map_BCHW))
        text = self.text(text_BD).view(len(text_BD), self.heads, -1)
        scale = query.shape[2] ** -0.5
        among = (scale * torch.einsum("bhcp,bhcq->bhpq", query, key)).softmax(-1)
        of_text = (scale * torch.einsum("bhcq,bhc->bhq", self._split(map_BCHW), text)).softmax(-1)
        mixed = torch.einsum("bhpq,bhcq->bhcp", among + of_text[:, :, None], value)
        out: torch.Tensor = self.output(mixed.flatten(1, 2).view_as(map_BCHW))
        return out

    def _split(self, map_BCHW: torch.Tensor) -> torch.Tensor:
        batch, channels = map_BCHW.shape[:2]
        return map_BCHW.reshape(batch, self.heads, channels // self.heads, -1)


class Cosmo(Head):
    """Content and style modulation of the last map."""

    needs = frozenset({"map"})
    classifies = True

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        channels, dim = config.extra["map"][0], config.dim
        self.content = nn.ModuleList(ContentAttention(channels, dim) for _ in range(2))
        self.weights = nn.Parameter(torch.ones(2))
        self.gates = EqualisedLinear(dim, 2 * channels, bias=0.0)
        self.gamma = EqualisedLinear(dim, channels, bias=1.0)
        self.beta = EqualisedLinear(dim, channels, bias=0.0)
        self.project = nn.Linear(channels, dim)

    def forward(
        self, image_BD: torch.Tensor, text_BD: torch.Tensor, *, map: torch.Tensor
    ) -> torch.Tensor:
        """Return normalised queries (B, D) of the map (B, C, H, W) and the text feature (B, D)."""
        mean = map.mean((2, 3), keepdim=True)
        deviation = (map.var((2, 3), correction=0, keepdim=True) + EPS).sqrt()
        content = (map - mean) / deviation
        for weight, attention in zip(self.weights, self.content, strict=True):
            content = content + weight * attention(content, text_BD)
        scale, shift = (g[..., None, None] for g in self.gates(text_BD).sigmoid().chunk(2, 1))
        gamma, beta = (fc(text_BD)[..., None, None] for fc in (self.gamma, self.beta))
        styled = (scale * deviation + gamma) * content + shift * mean + beta
        return F.normalize(self.project(styled.mean((2, 3))), dim=-1)

    def training_loss(self, batch: HeadBatch, logit_scale: float) -> torch.Tensor:
        """Return the batch-based classification loss at the method's own scale, 16."""
        query_BD = self(batch.image_BD, batch.text_BD, **batch.extra)
        return batch.classification_loss(query_BD, SCALE**2)


def build(config: HeadConfig) -> Cosmo:
    """Build CoSMo for maps of the shape in `config.extra`."""
    return Cosmo(config)
