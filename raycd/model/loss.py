"""Batch-based classification loss (eq. 4) with the negatives of all workers.

| query i, target j       | counts as                                    |
| ----------------------- | -------------------------------------------- |
| j is i's own            | the class to find                            |
| j is the same image     | left out: another triplet with i's target    |
| j is right for i, too   | left out: a further target of i              |
| any other, any worker's | negative                                     |

logit scale = 1 / temperature; the paper's "tau = 100" is a logit scale of 100.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch.nn import functional as F

from raycd.distributed import gather, own_rows


def full_precision(like: torch.Tensor) -> AbstractContextManager[None]:
    """Return a context that ends autocast on the device of `like`; its inputs must be fp32."""
    return torch.autocast(like.device.type, enabled=False)


def batch_classification_loss(
    query_BD: torch.Tensor,
    target_BD: torch.Tensor,
    target_B: torch.Tensor,
    logit_scale: float | torch.Tensor,
    right_BT: torch.Tensor | None = None,
    *,
    margin: float = 0.0,
) -> torch.Tensor:
    """Return the mean cross entropy of this worker's queries over the targets of all workers.

    The mean over the workers of this loss, and of its gradient, is that of a single worker with all
    the triplets. Every worker must have the same B.

    It is computed in fp32, also under autocast.

    Args:
        query_BD: Query features; normalised here.
        target_BD: Target features of the same triplets, in the same order; normalised here.
        target_B: A number for each target image (int64): equal numbers are the same image, never
            negatives.
        logit_scale: Factor of the cosines; a tensor where it is learned.
        right_BT: Numbers of all targets that are right for each query, padded with -1: no negatives
            of it either. None: each has its own target alone.
        margin: What the logit of the class to find is lowered by (additive margin softmax).
    """
    with full_precision(query_BD):
        all_targets = gather(F.normalize(target_BD.float(), dim=-1))
        logits = logit_scale * F.normalize(query_BD.float(), dim=-1) @ all_targets.T
        same = same_images(target_B, gather(target_B)[None, :], right_BT)
        return margin_softmax_loss(logits, own_rows(len(query_BD), query_BD.device), same, margin)


def same_images(
    target_B: torch.Tensor, candidate_BN: torch.Tensor, right_BT: torch.Tensor | None = None
) -> torch.Tensor:
    """Tell which candidates (B or 1, N) are a query's own target or right for it, too (B, N)."""
    same = target_B[:, None] == candidate_BN
    for right_B in () if right_BT is None else right_BT.unbind(1):
        same |= right_B[:, None] == candidate_BN
    return same


def margin_softmax_loss(
    logits_BN: torch.Tensor, own_B: torch.Tensor, same_BN: torch.Tensor, margin: float = 0.0
) -> torch.Tensor:
    """Return the mean cross entropy of finding candidate own_B among N.

    Its logit is lowered by `margin` first (additive margin softmax). The candidates that `same_BN`
    marks are left out, but its own.
    """
    rows = torch.arange(len(own_B), device=own_B.device)
    others_BN = same_BN.clone()
    others_BN[rows, own_B] = False
    if margin:
        logits_BN = logits_BN - margin * F.one_hot(own_B, logits_BN.shape[1])
    return F.cross_entropy(logits_BN.masked_fill(others_BN, -torch.inf), own_B)
