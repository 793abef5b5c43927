"""Re-ranking: a head that judges pairs puts the first candidates of a ranking in another order.

The first `depth` candidates by cosine are ordered by cosine + `Head.rerank`; all others keep their
order below them.

Shapes: B queries, N candidates of each, G gallery images, D feature size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from raycd.evaluate import RerankFunction, Triplet, text_of
from raycd.evaluate.ranking import Rescore
from raycd.features import Features
from raycd.model.fusion import Head

PAIRS = 2**14  # of query and candidate that a head sees at once
_ABOVE = 2.0  # every cosine is below


def cached_rerank(
    head: Head, images: Features, texts: Features, depth: int, device: torch.device | str = "cpu"
) -> RerankFunction | None:
    """Return what re-ranks queries of cached features, as `evaluate` takes it.

    None where the head re-ranks nothing, or nothing is to be re-ranked.
    """
    if not head.reranks or depth == 0:
        return None

    def of_batch(triplets: Sequence[Triplet], gallery_GD: torch.Tensor) -> Rescore:
        image_BD = images.take((triplet["reference"] for triplet in triplets), device)
        text_BD = texts.take(map(text_of, triplets), device)

        def rescore(rows: slice, score_BG: torch.Tensor) -> torch.Tensor:
            return _lifted(head, image_BD[rows], text_BD[rows], gallery_GD, score_BG, depth)

        return rescore

    return of_batch


def _lifted(
    head: Head,
    image_BD: torch.Tensor,
    text_BD: torch.Tensor,
    gallery_GD: torch.Tensor,
    score_BG: torch.Tensor,
    depth: int,
) -> torch.Tensor:
    """Return scores (B, G) in which the first candidates have new ones, all above the others.

    Images that were left out (minus infinity) stay so.
    """
    most = max(1, int((score_BG != -torch.inf).sum(1).max()))  # others were left out
    first = score_BG.topk(min(depth, most), dim=1)
    step = max(1, PAIRS // max(1, first.indices.shape[1]))
    added = [
        head.rerank(image_BD[rows], text_BD[rows], gallery_GD[first.indices[rows]]).float()
        for start in range(0, len(image_BD), step)
        for rows in (slice(start, start + step),)
    ]
    new_BN = first.values + torch.cat(added)
    left_out_BN = first.values == -torch.inf
    least_B1 = new_BN.masked_fill(left_out_BN, torch.inf).amin(1, keepdim=True)
    new_BN = (new_BN - least_B1 + _ABOVE).masked_fill(left_out_BN, -torch.inf)
    return score_BG.scatter(1, first.indices, new_BN)
