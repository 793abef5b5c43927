"""The images of a batch's queries, one after the other, and what becomes of them in each query.

Shapes: B queries, N images of all of them, D feature size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch

from raycd.search.query import Pictured, Prepared


class BatchImages(NamedTuple):
    """The images of some queries."""

    pictures: Sequence[Pictured]
    row_N: torch.Tensor
    """The query of each."""
    share_N: torch.Tensor
    """What each is of its query's reference, 1 together; 0 of those that push away."""
    push_N: torch.Tensor
    """Weights of those that push away; 0 of the others."""
    has_image: torch.Tensor
    """(B,): which queries have a reference."""

    @classmethod
    def of(cls, batch: Sequence[Prepared]) -> Self:
        """Return the images of prepared queries."""
        pictures = [one for prepared in batch for one in prepared.pictures]
        counts = torch.tensor([len(prepared.pictures) for prepared in batch])
        row_N = torch.arange(len(batch)).repeat_interleave(counts)
        # In float32 small weights would be none
        weight_N = torch.tensor([one.weight for one in pictures], dtype=torch.float64)
        pull_N = weight_N.clamp(min=0)
        total_B = torch.zeros(len(batch), dtype=torch.float64).index_add(0, row_N, pull_N)
        share_N = pull_N / torch.where(total_B > 0, total_B, 1)[row_N]
        push_N = weight_N.clamp(max=0)
        return cls(pictures, row_N, share_N.float(), push_N.float(), total_B > 0)

    def mean(self, values_ND: torch.Tensor) -> torch.Tensor:
        """Return the weighted means (B, D) over references; NaN where a query has none."""
        return self._sums(self.share_N, values_ND).masked_fill(~self.has_image[:, None], torch.nan)

    def pushed(self, values_ND: torch.Tensor) -> torch.Tensor:
        """Return the sums (B, D) of what pushes away, each by its weight."""
        return self._sums(self.push_N, values_ND)

    def _sums(self, weight_N: torch.Tensor, values_ND: torch.Tensor) -> torch.Tensor:
        sums_BD = torch.zeros(len(self.has_image), values_ND.shape[1])
        return sums_BD.index_add(0, self.row_N, weight_N[:, None] * values_ND)
