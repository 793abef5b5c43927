"""Ranks of right images by inner product: tensors in, ranks from 1 out.

A rank is 1 + the number of wrong images whose score is not below that of the right one, + the
number of right images before it. So exact ties count against us, and so does a score that is NaN.

Shapes: Q queries, B of them at once, G gallery images, D feature size, T right images of a query, S
candidates of a subset (CIRR, GeneCIS).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

# Rows of the queries and their scores (B, G), -inf where left out -> scores of another order
Rescore = Callable[[slice, torch.Tensor], torch.Tensor]

# Of queries with the gallery at once: 256 MiB, and some 1 GiB with what ranks are made of
SCORES = 2**26

# The rank of a target that cannot be found, greater than every k
NOT_FOUND = torch.iinfo(torch.int64).max


def rank_targets(
    query_QD: torch.Tensor,
    gallery_GD: torch.Tensor,
    targets: torch.Tensor,
    masked: torch.Tensor | None = None,
    *,
    batch_size: int = 1024,
) -> torch.Tensor:
    """Return the rank (Q,) of the best target of each query.

    `targets` (Q,) or (Q, T) are positions in the gallery, -1 where a target is absent: its rank is
    NOT_FOUND. `masked` (Q,) are positions to leave out, -1 for none; a masked target is not found.
    """
    several = targets if targets.dim() == 2 else targets[:, None]
    return rank_all_targets(query_QD, gallery_GD, several, masked, batch_size=batch_size)[:, 0]


def rank_all_targets(
    query_QD: torch.Tensor,
    gallery_GD: torch.Tensor,
    targets_QT: torch.Tensor,
    masked: torch.Tensor | None = None,
    *,
    batch_size: int = 1024,
    rescore: Rescore | None = None,
) -> torch.Tensor:
    """Return the ranks (Q, T) of all targets, best first; see `rank_targets`.

    `rescore` gives the scores that decide in place of the inner products (raycd.evaluate.rerank).
    """
    ranks = torch.empty(targets_QT.shape, dtype=torch.int64)
    for batch in _blocks(query_QD, gallery_GD, batch_size):
        score_BG = query_QD[batch] @ gallery_GD.T
        target_BT = targets_QT[batch].to(score_BG.device)
        lost_BT = target_BT < 0
        if masked is not None:
            masked_B = masked[batch].to(score_BG.device)
            _leave_out(score_BG, masked_B)
            lost_BT |= target_BT == masked_B[:, None]
        if rescore is not None:
            score_BG = rescore(batch, score_BG)
        ranks[batch] = _ranks(score_BG, target_BT, lost_BT).cpu()
    return ranks


def rank_in_subsets(
    query_QD: torch.Tensor,
    gallery_GD: torch.Tensor,
    targets: torch.Tensor,
    subsets: torch.Tensor,
    rescore: Rescore | None = None,
) -> torch.Tensor:
    """Return the rank (Q,) of the best target among `subsets` (Q, S).

    Subsets are positions in the gallery padded with -1. A target that is -1 or not in its subset is
    NOT_FOUND. `rescore` is that of `subset_scores`.
    """
    subsets, targets = subsets.to(query_QD.device), targets.to(query_QD.device)
    target_QT = targets if targets.dim() == 2 else targets[:, None]
    score_QS = subset_scores(query_QD, gallery_GD, subsets, rescore)
    is_target_QS = (subsets[:, :, None] == target_QT[:, None]).any(-1) & (subsets >= 0)
    target_Q1 = torch.where(is_target_QS, score_QS, -torch.inf).amax(1, keepdim=True)
    wrong_QS = ~(score_QS < target_Q1) & (subsets >= 0) & ~is_target_QS
    return torch.where(is_target_QS.any(1), 1 + wrong_QS.sum(1), NOT_FOUND).cpu()


def subset_scores(
    query_QD: torch.Tensor,
    gallery_GD: torch.Tensor,
    subset_QS: torch.Tensor,
    rescore: Rescore | None = None,
) -> torch.Tensor:
    """Return the scores (Q, S) that order positions of the gallery, -inf where there is none (-1).

    `rescore` orders them as if there was no other image: a subset is a gallery of its own.
    """
    index_QS, there_QS = subset_QS.clamp(min=0), subset_QS >= 0
    score_QS = torch.einsum("qd,qsd->qs", query_QD, gallery_GD[index_QS])
    if rescore is not None and there_QS.any():
        for batch in _blocks(query_QD, gallery_GD, len(query_QD)):
            own_BS, there_BS, index_BS = score_QS[batch], there_QS[batch], index_QS[batch]
            alone_BG = own_BS.new_full((len(own_BS), len(gallery_GD)), -torch.inf)
            rows, columns = there_BS.nonzero(as_tuple=True)
            alone_BG[rows, index_BS[rows, columns]] = own_BS[rows, columns]
            score_QS[batch] = rescore(batch, alone_BG).gather(1, index_BS)
    return score_QS.masked_fill(~there_QS, -torch.inf)


def average_precision(ranks_QT: torch.Tensor, relevant_Q: torch.Tensor, k: int) -> torch.Tensor:
    """Return AP@k (Q,) as CIRCO's own evaluation defines it, from 0 to 1.

    The precisions at those of the first k that are right, summed and divided by min(k, number of
    right images).

    Args:
        ranks_QT: Ranks of the right images, best first, NOT_FOUND where there is none.
        relevant_Q: Number of right images, those that cannot be found included.
    """
    count_T = torch.arange(1, ranks_QT.shape[1] + 1)
    precision_QT = torch.where(ranks_QT <= k, count_T / ranks_QT.double(), 0.0)
    return precision_QT.sum(1) / relevant_Q.clamp(max=k)


def mean_average_precision(
    ranks_QT: torch.Tensor, relevant_Q: torch.Tensor, ks: Sequence[int]
) -> dict[str, float]:
    """Return {"map@k": mean of AP@k over the queries}, Q > 0; see `average_precision`."""
    return {f"map@{k}": float(average_precision(ranks_QT, relevant_Q, k).mean()) for k in ks}


def recall(ranks: torch.Tensor, ks: Sequence[int], *, name: str = "recall") -> dict[str, float]:
    """Return {"recall@k": share of ranks <= k, from 0 to 1} of ranks (Q,) from 1, Q > 0."""
    return {f"{name}@{k}": int((ranks <= k).sum()) / len(ranks) for k in ks}


def top_images(
    query_QD: torch.Tensor,
    gallery_GD: torch.Tensor,
    k: int,
    masked: torch.Tensor | None = None,
    *,
    batch_size: int = 1024,
    rescore: Rescore | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the best images of each query by inner product: scores (Q, k) and positions (Q, k).

    `masked` is that of `rank_targets`, `rescore` that of `rank_all_targets`; it changes the order
    alone: scores are inner products. k is cut to the size of the gallery (less one where images are
    masked).
    """
    k = min(k, len(gallery_GD) - (masked is not None))
    scores, positions = [], []
    for batch in _blocks(query_QD, gallery_GD, batch_size):
        score_BG = query_QD[batch] @ gallery_GD.T
        if masked is not None:
            _leave_out(score_BG, masked[batch].to(score_BG.device))
        order_BG = score_BG if rescore is None else rescore(batch, score_BG)
        best_BK = order_BG.topk(k, dim=1).indices
        scores.append(score_BG.gather(1, best_BK).cpu())
        positions.append(best_BK.cpu())
    return torch.cat(scores), torch.cat(positions)


def _blocks(query_QD: torch.Tensor, gallery_GD: torch.Tensor, batch_size: int) -> Iterator[slice]:
    """Yield slices of the queries, of `batch_size` at most, that have SCORES with a gallery."""
    rows = min(batch_size, max(1, SCORES // max(1, len(gallery_GD))))
    for start in range(0, len(query_QD), rows):
        yield slice(start, min(start + rows, len(query_QD)))


def _ranks(score_BG: torch.Tensor, target_BT: torch.Tensor, lost_BT: torch.Tensor) -> torch.Tensor:
    """Return ranks (B, T), best first; NOT_FOUND where lost."""
    score_BT = score_BG.gather(1, target_BT.clamp(min=0))
    # A target of no score comes last of all that are found
    score_BT = torch.where(score_BT.isnan() & ~lost_BT, -torch.inf, score_BT)
    is_wrong_BG = torch.ones_like(score_BG, dtype=torch.bool)
    found = (~lost_BT).nonzero(as_tuple=True)
    is_wrong_BG[found[0], target_BT[found]] = False
    order_BT = torch.where(lost_BT, torch.nan, -score_BT).argsort(dim=1, stable=True)  # NaN last
    ranks = []
    for number, column_B in enumerate(order_BT.unbind(1), 1):
        own_B1 = score_BT.gather(1, column_B[:, None])
        # Negated "<" rather than ">=", which is false for NaN
        before_B = (~(score_BG < own_B1) & is_wrong_BG).sum(1)
        lost_B = lost_BT.gather(1, column_B[:, None])[:, 0]
        ranks.append(torch.where(lost_B, NOT_FOUND, number + before_B))
    return torch.stack(ranks, dim=1)


def _leave_out(score_BG: torch.Tensor, masked_B: torch.Tensor) -> None:
    """Set the score of each query's masked image (none where -1) to minus infinity, in place."""
    rows = (masked_B >= 0).nonzero()[:, 0]
    score_BG[rows, masked_B[rows]] = -torch.inf
