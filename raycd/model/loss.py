"""Batch-based classification loss (eq. 4) with the negatives of all workers.

| query i, target j       | counts as                                    |
| ----------------------- | -------------------------------------------- |
| j is i's own            | the class to find                            |
| j is the same image     | left out: another triplet with i's target    |
| j is right for i, too   | left out: a further target of i              |
| any other, any worker's | negative; with soft targets as far as unlike |
| i's hard negatives       | negatives of i alone                         |

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
    weight_B: torch.Tensor | None = None,
    soft: float = 0.0,
    hard_BnD: torch.Tensor | None = None,
    hard_Bn: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the mean cross entropy of this worker's queries over the targets of all workers.

    The mean over the workers of this loss, and of its gradient, is that of a single worker with all
    the triplets; where their B differ, each times its share (`distributed.batch_of`).

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
        weight_B: Factor of each triplet's loss, whose sum is divided by B in any case; None: 1.
        soft: Share of the probability to learn that goes to targets by their likeness to a
            triplet's own, see `soft_targets`; the rest is the own target's.
        hard_BnD: Features of further negatives of each triplet alone; normalised here.
        hard_Bn: Whether each of them is there.
    """
    with full_precision(query_BD):
        all_targets = gather(F.normalize(target_BD.float(), dim=-1))
        query_BD = F.normalize(query_BD.float(), dim=-1)
        logits = logit_scale * query_BD @ all_targets.T
        same = same_images(target_B, gather(target_B)[None, :], right_BT)
        own_B = own_rows(len(query_BD), query_BD.device)
        share = soft_targets(all_targets, own_B, same, logit_scale, soft) if soft else None
        if hard_BnD is not None and hard_Bn is not None:
            hard = F.normalize(hard_BnD.float(), dim=-1) @ query_BD[:, :, None]
            logits = torch.cat([logits, logit_scale * hard[:, :, 0]], dim=1)
            same = torch.cat([same, ~hard_Bn], dim=1)
            share = None if share is None else F.pad(share, (0, hard_Bn.shape[1]))
        return margin_softmax_loss(logits, own_B, same, margin, weight_B, share)


def same_images(
    target_B: torch.Tensor, candidate_BN: torch.Tensor, right_BT: torch.Tensor | None = None
) -> torch.Tensor:
    """Tell which candidates (B or 1, N) are a query's own target or right for it, too (B, N)."""
    same = target_B[:, None] == candidate_BN
    for right_B in () if right_BT is None else right_BT.unbind(1):
        same |= right_B[:, None] == candidate_BN
    return same


def margin_softmax_loss(
    logits_BN: torch.Tensor,
    own_B: torch.Tensor,
    same_BN: torch.Tensor,
    margin: float = 0.0,
    weight_B: torch.Tensor | None = None,
    share_BN: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the mean cross entropy of finding candidate own_B among N, each times its weight.

    Its logit is lowered by `margin` first (additive margin softmax). The candidates that `same_BN`
    marks are left out, but its own. `share_BN` are the probabilities to learn, where they are not
    all the own candidate's.
    """
    if margin:
        logits_BN = logits_BN - margin * F.one_hot(own_B, logits_BN.shape[1])
    left_out_BN = _but_own(same_BN, own_B)
    logits_BN = logits_BN.masked_fill(left_out_BN, -torch.inf)
    if share_BN is not None:
        found_BN = logits_BN.log_softmax(1).masked_fill(left_out_BN, 0.0)
        loss_B = -(share_BN * found_BN).sum(1)
    elif weight_B is not None:
        loss_B = F.cross_entropy(logits_BN, own_B, reduction="none")
    else:
        return F.cross_entropy(logits_BN, own_B)
    return (loss_B if weight_B is None else weight_B * loss_B).mean()


@torch.no_grad()
def soft_targets(
    target_ND: torch.Tensor,
    own_B: torch.Tensor,
    same_BN: torch.Tensor,
    logit_scale: float | torch.Tensor,
    soft: float,
) -> torch.Tensor:
    """Return the probabilities (B, N) that queries shall learn of the candidates.

    The own one has 1 - soft, and of the rest as much as the softmax of its scaled cosines with all
    candidates gives it, as each of the others has. Those that `same_BN` marks have none.

    Args:
        target_ND: Features of the candidates, normalised.
    """
    alike_BN = logit_scale * target_ND[own_B] @ target_ND.T
    share_BN = soft * alike_BN.masked_fill(_but_own(same_BN, own_B), -torch.inf).softmax(1)
    share_BN[torch.arange(len(own_B), device=own_B.device), own_B] += 1 - soft
    return share_BN


def _but_own(same_BN: torch.Tensor, own_B: torch.Tensor) -> torch.Tensor:
    return same_BN.scatter(1, own_B[:, None], False)
