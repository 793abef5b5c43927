"""`Head`, what every fusion head is, and `HeadBatch`, what its loss sees.

The gallery's side is the same for every head: the frozen encoder's pooled feature, compared by the
cosine. So one gallery, index and bundle serve all heads, and all are compared under one protocol.
Where a paper maps the target through layers of its own, the head here does not, and says so.

Shapes: B triplets, D feature size, N candidates; C, H, W of a feature map; L text tokens of size E.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from raycd.model.loss import batch_classification_loss

WORDS = "words"
NEEDS = frozenset({"map", "middle", "tokens", WORDS})
"""What a head may ask of the frozen encoder beside pooled features; WORDS, of its tokenizer."""


@dataclass(frozen=True)
class HeadBatch:
    """A batch of triplets as features of the frozen encoder, un-normalised."""

    image_BD: torch.Tensor
    """Of the reference images."""
    text_BD: torch.Tensor
    target_BD: torch.Tensor
    """Of the target images."""
    target_B: torch.Tensor
    """int64; triplets of equal numbers, on whatever worker, are not each other's negatives."""
    extra: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """What the head needs of reference and text: map (B, C, H, W), middle (B, C2, H2, W2), tokens
    (B, L, E), and with them token_mask (B, L), true where there is a token; words (B, L), tokens.
    """
    target_extra: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """What its loss needs of the target image (`Head.needs_of_target`): map, middle."""
    image_B: torch.Tensor | None = None
    """Numbers of the reference images, for losses that look for them; None: all differ."""
    right_BT: torch.Tensor | None = None
    """Numbers of all targets that are right for each triplet, padded with -1: no negatives either.
    None: each has its own target alone.
    """
    weight_B: torch.Tensor | None = None
    """What each triplet counts in the classification loss; None: 1."""
    soft: float = 0.0
    """Share of the probability that targets have in it by their likeness to a triplet's own."""
    hard_BnD: torch.Tensor | None = None
    """Of each triplet's hard negatives in it; None: they have none."""
    hard_Bn: torch.Tensor | None = None
    """Whether each of them is there."""

    def classification_loss(
        self, query_BD: torch.Tensor, logit_scale: float | torch.Tensor, *, margin: float = 0.0
    ) -> torch.Tensor:
        """Return the batch-based classification loss (eq. 4) of queries (B, D) for the targets."""
        return batch_classification_loss(
            *(query_BD, self.target_BD, self.target_B, logit_scale, self.right_BT),
            margin=margin,
            weight_B=self.weight_B,
            soft=self.soft,
            hard_BnD=self.hard_BnD,
            hard_Bn=self.hard_Bn,
        )


class Head(nn.Module):
    """A fusion head: forward(image_BD, text_BD, **extra) -> normalised queries (B, D).

    `extra` are the tensors of `HeadBatch.extra` that the head needs, by their names; a head of
    pooled features takes the two arguments alone. Features are un-normalised. Every parameter takes
    part in every training loss: DistributedDataParallel waits for its gradient.

    Attributes:
        needs: Those of `NEEDS` that the head asks for; it finds their shapes in
            `HeadConfig.extra`.
        needs_of_target: Those of them that its loss asks for of the target image, too.
        reranks: Whether it has `rerank`.
        trains: Whether it has weights.
        on_titles: Whether it learns from texts alone (`raycd.train.invert`), from no triplet.
        drops: Whether it has dropout, by `HeadConfig.dropout`: a sweep searches it then.
        classifies: Whether a `training_loss` of its own takes hard negatives, as
            `HeadBatch.classification_loss` does.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    needs_of_target: ClassVar[frozenset[str]] = frozenset()
    reranks: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    on_titles: ClassVar[bool] = False
    drops: ClassVar[bool] = False
    classifies: ClassVar[bool] = False

    def training_loss(self, batch: HeadBatch, logit_scale: float) -> torch.Tensor:
        """Return the loss of a batch: the batch-based classification loss (eq. 4) of its queries.

        A head with a loss of its own overrides this. It may run under autocast: what must not be
        rounded is taken out of it, as `raycd.model.loss.full_precision` does.
        """
        query_BD = self(batch.image_BD, batch.text_BD, **batch.extra)
        return batch.classification_loss(query_BD, logit_scale)

    @classmethod
    def takes_hard_negatives(cls) -> bool:
        """Return whether its loss is, or has, eq. 4 for its queries."""
        own = cls.classifies or cls.training_loss is Head.training_loss
        return own and not cls.on_titles

    def rerank(
        self, image_BD: torch.Tensor, text_BD: torch.Tensor, candidate_BND: torch.Tensor
    ) -> torch.Tensor:
        """Return scores (B, N) of gallery images for each query, greater is better.

        Reference and text are un-normalised, as everywhere in a head; candidates are of length 1,
        as an index keeps them, where `HeadBatch.target_BD` is un-normalised: normalise that where
        both go through the same layers. Scores are added to the cosines of the first candidates
        (`raycd.evaluate.rerank`). Only heads whose `reranks` is true have it.
        """
        raise NotImplementedError(f"{type(self).__name__} re-ranks nothing")
