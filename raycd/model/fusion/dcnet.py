"""DCNet's composition and correction (Kim et al., AAAI 2021) on one expert, the pooled features.

x = s_i L2(x),  y = s_i L2(y) of reference and candidate,  t = s_t L2(ReLU Lin t)
s_i, s_t learned, 5 at first
composition: f = TIRG's gated feature and residual of [x; t; x * t] (3D in), to length s_i
             score f . y
correction:  u = ReLU Lin [x * y; x],  v = ReLU Lin [x * y; y]
             e = s_t L2(ReLU Lin [x; v - u; y])           (what a text for this pair would say)
             score e . t
joint:       f' = the composition of x and (e + t) / 2, e of the pair (x, own target); score f' . f
loss = composition + correction + 0.5 joint, each an additive margin softmax of margin 0.3 over the
batch, without a temperature but s; stage2.logit_scale is not used.

The correction asks about every pair of query and image, so no index can serve it: it re-ranks. The
paper adds the logarithms of the softmax over either score, which orders images as f . y + e . t
does. `rerank` gives (e . t) / s_i^2, to add to the cosine of f and y.

What differs from the paper: M = 1 expert, the pooled feature of the frozen CLIP, instead of 7 from
positions and layers of a ResNet-50 that trains with it; the image's expert has no Lin and ReLU,
because the gallery's side has none; the text's is CLIP's feature instead of attention over words.
The correction of a query is trained on blocks of 32 of the batch, the paper's batch size: each
triplet of a larger batch with each would be 1000 times the work. It is DCNet's composition and
correction on CLIP features, not DCNet as published. The paper's equations are unnumbered in what we
read; sizes and first values are those of the authors' code (ozmig77/dcnet).
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from raycd.distributed import gather, own_rows
from raycd.model.fusion.head import Head, HeadBatch
from raycd.model.fusion.registry import HeadConfig
from raycd.model.fusion.tirg import GatedResidual
from raycd.model.loss import full_precision, margin_softmax_loss, same_images

MARGIN, JOINT_WEIGHT = 0.3, 0.5
BLOCK = 32  # triplets whose targets are each other's candidates in the correction


class DcNet(Head):
    """DCNet's composition, and its correction as a re-ranker."""

    reranks: ClassVar[bool] = True

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        dim = config.dim
        self.text = nn.Sequential(nn.Linear(dim, dim), nn.ReLU())
        self.compose = GatedResidual(dim, 3 * dim)
        self.fuse_reference = nn.Sequential(nn.Linear(2 * dim, dim), nn.ReLU())
        self.fuse_candidate = nn.Sequential(nn.Linear(2 * dim, dim), nn.ReLU())
        self.difference = nn.Sequential(nn.Linear(3 * dim, dim), nn.ReLU())
        self.image_scale = nn.Parameter(torch.tensor(5.0))
        self.text_scale = nn.Parameter(torch.tensor(5.0))

    def forward(self, image_BD: torch.Tensor, text_BD: torch.Tensor) -> torch.Tensor:
        """Return normalised queries (B, D) of un-normalised features (B, D) each."""
        return self._composed(self._image(image_BD), self._text(text_BD))

    def rerank(
        self, image_BD: torch.Tensor, text_BD: torch.Tensor, candidate_BND: torch.Tensor
    ) -> torch.Tensor:
        """Return the correction's scores (B, N), in the scale of the composition's cosines."""
        difference_BND = self._difference(self._image(image_BD), self._image(candidate_BND))
        score_BN = (difference_BND * self._text(text_BD).unsqueeze(1)).sum(-1)
        return score_BN / self.image_scale.square()

    def training_loss(self, batch: HeadBatch, logit_scale: float) -> torch.Tensor:
        """Return the losses of composition, correction and both jointly."""
        image_BD, text_BD = self._image(batch.image_BD), self._text(batch.text_BD)
        scale = self.image_scale.square()
        query_BD = self._composed(image_BD, text_BD)
        candidates_BN, outside_BN, own_B = _blocks(batch)
        candidate_BND = self._image(gather(batch.target_BD)[candidates_BN])
        difference_BND = self._difference(image_BD, candidate_BND)
        own_BD = difference_BND[torch.arange(len(own_B), device=own_B.device), own_B]
        joint_BD = self._composed(image_BD, (own_BD + text_BD) / 2)
        composition = batch.classification_loss(query_BD, scale, margin=MARGIN)
        joint = replace(batch, target_BD=query_BD).classification_loss(
            joint_BD, scale, margin=MARGIN
        )
        with full_precision(image_BD):
            score_BN = (difference_BND.float() * text_BD.float().unsqueeze(1)).sum(-1)
            correction = margin_softmax_loss(score_BN, own_B, outside_BN, MARGIN)
        return composition + correction + JOINT_WEIGHT * joint

    def _image(self, feature: torch.Tensor) -> torch.Tensor:
        return self.image_scale * F.normalize(feature, dim=-1)

    def _text(self, text_BD: torch.Tensor) -> torch.Tensor:
        return self.text_scale * F.normalize(self.text(text_BD), dim=-1)

    def _composed(self, image_BD: torch.Tensor, text_BD: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.compose(image_BD, text_BD, image_BD * text_BD), dim=-1)

    def _difference(self, image_BD: torch.Tensor, candidate_BND: torch.Tensor) -> torch.Tensor:
        """Return e (B, N, D) of scaled features."""
        image_BND = image_BD.unsqueeze(1).expand_as(candidate_BND)
        both_BND = image_BND * candidate_BND
        reference_BND = self.fuse_reference(torch.cat([both_BND, image_BND], dim=-1))
        changed_BND = self.fuse_candidate(torch.cat([both_BND, candidate_BND], dim=-1))
        three = [image_BND, changed_BND - reference_BND, candidate_BND]
        return self.text_scale * F.normalize(self.difference(torch.cat(three, dim=-1)), dim=-1)


def _blocks(batch: HeadBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the candidates of this worker's triplets: those of their block of the whole batch.

    They are rows (B, N) of all workers' targets; which of them are none, or right for the
    triplet (B, N); and where its own is (B,).
    """
    everyone = gather(batch.target_B)
    rows_B = own_rows(len(batch.target_B), everyone.device)
    first_B = rows_B // BLOCK * BLOCK
    rows_BN = first_B[:, None] + torch.arange(BLOCK, device=rows_B.device)
    beyond_BN = rows_BN >= len(everyone)
    rows_BN = rows_BN.clamp(max=len(everyone) - 1)
    same_BN = same_images(batch.target_B, everyone[rows_BN], batch.right_BT)
    return rows_BN, beyond_BN | same_BN, rows_B - first_B


def build(config: HeadConfig) -> DcNet:
    """Build a DCNet head; of the sizes in `config` it has D alone."""
    return DcNet(config)
