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

from raycd.distributed import gather, rank


def full_precision(like: torch.Tensor) -> AbstractContextManager[None]:
    """Return a context that ends autocast on the device of `like`; its inputs must be fp32."""
    return torch.autocast(like.device.type, enabled=False)


def batch_classification_loss(
    query_BD: torch.Tensor,
    target_BD: torch.Tensor,
    target_B: torch.Tensor,
    logit_scale: float,
    right_BT: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the mean cross entropy of this worker's queries over the targets of all workers.

    The mean over the workers of this loss, and of its gradient, is that of a single worker with all
    the triplets. Every worker must have the same B.

    It is fp32, also under autocast.

    Args:
        query_BD: Query features; normalised here.
        target_BD: Target features of the same triplets, in the same order; normalised here.
        target_B: A number for each target image (int64): equal numbers are the same image, never
            negatives.
        logit_scale: Factor of the cosines.
        right_BT: Numbers of all targets that are right for each query, padded with -1: no negatives
            of it either. None: each has its own target alone.
    """
    with full_precision(query_BD):
        return _cross_entropy(query_BD.float(), target_BD.float(), target_B, logit_scale, right_BT)


def _cross_entropy(
    query_BD: torch.Tensor,
    target_BD: torch.Tensor,
    target_B: torch.Tensor,
    logit_scale: float,
    right_BT: torch.Tensor | None,
) -> torch.Tensor:
    count = len(query_BD)
    all_targets = gather(F.normalize(target_BD, dim=-1))
    all_numbers = gather(target_B)
    own = torch.arange(count, device=query_BD.device) + rank() * count
    logits = logit_scale * F.normalize(query_BD, dim=-1) @ all_targets.T
    same = target_B[:, None] == all_numbers[None, :]
    for right_B in () if right_BT is None else right_BT.unbind(1):
        same |= right_B[:, None] == all_numbers[None, :]
    same[torch.arange(count, device=same.device), own] = False
    return F.cross_entropy(logits.masked_fill(same, -torch.inf), own)
