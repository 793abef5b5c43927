"""ComposeAE's composition (Anwaar et al., WACV 2021, arXiv 2006.11149).

The text rotates the image in a complex space of size k = D; two mappings, rho and rho_conv,
each with a rotation of its own, lead back to image space:

p     = Lin ReLU drop Lin BN x                              (the image in complex space)
theta = Lin ReLU Lin BN t                                   (the angles of the rotation)
re    = p cos theta,  im = c p sin theta                    (delta = exp(i theta); c: +1, or -1)
rho      = Lin ReLU Lin ReLU BN [re; im]                    2D -> D -> D
rho_conv = Lin ReLU Lin ReLU BN pool16 conv3 [p; theta; x; re; im]   5 channels of length D -> 64
f = b_rho rho + b_conv rho_conv,  learned, 10 and 1 at first
decoders: x' = Lin ReLU Lin ReLU BN f,  t' = likewise       (reconstructions)
loss = BBC(f, y) + 0.1 MSE(x', x) + 0.1 MSE(t', t) + 0.01 BBC(f*, x), weights of the code
f* composes y and t with c = -1: the conjugate turns the target back into the reference (rotational
symmetry). BBC is the batch-based classification loss, its cosines times s^2, s learned, 4 at first;
stage2.logit_scale is not used.

What differs from the paper: x, t and y are features of the frozen CLIP, of one size D, instead of
those of ResNet-18 (512), which trains with it, and BERT (768). Layers, weights and first values are
those of the authors' code (ecom-research/ComposeAE), whose Fashion-IQ command runs a real-valued
ablation instead. It is ComposeAE's composition on CLIP features, not ComposeAE as published.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from raycd.distributed import own_rows
from raycd.model.fusion.batch_norm import BatchNorm
from raycd.model.fusion.dropout import Dropout
from raycd.model.fusion.head import Head, HeadBatch
from raycd.model.fusion.registry import HeadConfig
from raycd.model.loss import batch_classification_loss, full_precision

IMAGE_WEIGHT, TEXT_WEIGHT, ROTATION_WEIGHT = 0.1, 0.1, 0.01
CHANNELS, POOLED = 64, 16  # of rho_conv


def _mapping(size: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        BatchNorm(size), nn.ReLU(), nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, out)
    )


class ComplexProjection(nn.Module):
    """The image in complex space, rotated by the text."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.image = nn.Sequential(
            BatchNorm(dim),
            nn.Linear(dim, dim),
            Dropout(dropout),
            nn.ReLU(),
            nn.Linear(dim, dim),
        )
        self.angles = nn.Sequential(
            BatchNorm(dim), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim)
        )

    def forward(
        self, image_BD: torch.Tensor, text_BD: torch.Tensor, sign: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return p, theta, real and imaginary part, (B, D) each."""
        projected_BD, angles_BD = self.image(image_BD), self.angles(text_BD)
        real_BD = projected_BD * torch.cos(angles_BD)
        imaginary_BD = sign * projected_BD * torch.sin(angles_BD)
        return projected_BD, angles_BD, real_BD, imaginary_BD


class ComposeAe(Head):
    """ComposeAE's composition, with its decoders and the learned scale of its loss."""

    drops: ClassVar[bool] = True
    classifies: ClassVar[bool] = True

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        dim = config.dim
        self.rotate = ComplexProjection(dim, config.dropout)
        self.rho = _mapping(2 * dim, dim, dim)
        self.rotate_conv = ComplexProjection(dim, config.dropout)
        self.conv = nn.Sequential(
            nn.Conv1d(5, CHANNELS, 3, padding=1), nn.AdaptiveMaxPool1d(POOLED), nn.Flatten()
        )
        self.rho_conv = _mapping(CHANNELS * POOLED, dim, dim)
        self.rho_weight = nn.Parameter(torch.tensor(10.0))
        self.conv_weight = nn.Parameter(torch.tensor(1.0))
        self.decode_image = _mapping(dim, dim, dim)
        self.decode_text = _mapping(dim, dim, dim)
        self.scale = nn.Parameter(torch.tensor(4.0))

    def compose(
        self, image_BD: torch.Tensor, text_BD: torch.Tensor, sign: float = 1.0
    ) -> torch.Tensor:
        """Return f (B, D), before normalisation; `sign` -1 rotates the other way."""
        _, _, real_BD, imaginary_BD = self.rotate(image_BD, text_BD, sign)
        rho_BD = self.rho(torch.cat([real_BD, imaginary_BD], dim=-1))
        projected_BD, angles_BD, real_BD, imaginary_BD = self.rotate_conv(image_BD, text_BD, sign)
        rows = [projected_BD, angles_BD, image_BD.to(real_BD.dtype), real_BD, imaginary_BD]
        conv_BD = self.rho_conv(self.conv(torch.stack(rows, dim=1)))
        found: torch.Tensor = self.rho_weight * rho_BD + self.conv_weight * conv_BD
        return found

    def forward(self, image_BD: torch.Tensor, text_BD: torch.Tensor) -> torch.Tensor:
        """Return normalised queries (B, D) of un-normalised features (B, D) each."""
        return F.normalize(self.compose(image_BD, text_BD), dim=-1)

    def training_loss(self, batch: HeadBatch, logit_scale: float) -> torch.Tensor:
        """Return the loss of the target, the reconstructions and the rotational symmetry."""
        image_BD, text_BD, target_BD = batch.image_BD, batch.text_BD, batch.target_BD
        image_B = batch.image_B
        if image_B is None:
            image_B = own_rows(len(image_BD), image_BD.device)
        composed_BD = self.compose(image_BD, text_BD)
        image_again_BD, text_again_BD = (
            self.decode_image(composed_BD),
            self.decode_text(composed_BD),
        )
        back_BD = self.compose(target_BD, text_BD, sign=-1.0)
        scale = self.scale.square()
        with full_precision(image_BD):
            return (
                batch.classification_loss(composed_BD, scale)
                + IMAGE_WEIGHT * F.mse_loss(image_again_BD.float(), image_BD)
                + TEXT_WEIGHT * F.mse_loss(text_again_BD.float(), text_BD)
                + ROTATION_WEIGHT * batch_classification_loss(back_BD, image_BD, image_B, scale)
            )


def build(config: HeadConfig) -> ComposeAe:
    """Build a ComposeAE head; of the sizes in `config` it has D alone, and the dropout."""
    return ComposeAe(config)
