"""Re-ranking of served queries, as far as the time of their batch allows.

Shapes: N candidates of a query, D feature size.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from raycd.bundle import Bundle
from raycd.search.query import Encoded, Found, Prepared, Query

_SPARE = 2.0  # times what it took last must be left
_FORGET = 0.9  # of the longest time of a pair, at each re-ranking


class Reranking:
    """The head's order of the first candidates. Used by one thread at a time.

    Attributes:
        depth: Candidates of a query that names no number of its own; 0: the head re-ranks nothing.
    """

    def __init__(self, bundle: Bundle, device: torch.device) -> None:
        self._head, self._device = bundle.head, device
        self.depth = bundle.config.evaluate.rerank_depth if bundle.head.reranks else 0
        self._pair_s = 0.0

    def depth_of(self, query: Query, *, whole: bool) -> int:
        """Return how many candidates are re-ranked; `whole` tells that it has image and text."""
        if not (self._head.reranks and whole):
            return 0
        return self.depth if query.rerank_depth is None else query.rerank_depth

    def rerank(
        self, batch: Sequence[Prepared], features: Encoded, found: dict[int, Found]
    ) -> dict[int, Found]:
        """Return what was found for each query, by its row, in its new order.

        A query keeps its order where to re-rank it could make an answer of the batch, which all
        come together, later than somebody waits.
        """
        deadlines = [one.query.deadline for one in batch]
        latest = min((at for at in deadlines if at is not None), default=None)
        for row, one in enumerate(batch):
            if one.rerank_depth == 0:
                continue
            needed_s = _SPARE * self._pair_s * one.rerank_depth
            if latest is None or time.monotonic() + needed_s <= latest:
                halves = (features.raw_image_BD[row], features.raw_text_BD[row])
                found[row] = self._reranked(one, *halves, found[row])
        return found

    @torch.inference_mode()
    def _reranked(
        self, one: Prepared, image_D: NDArray[np.float32], text_D: NDArray[np.float32], found: Found
    ) -> Found:
        wanted = one.wanted(found)
        scores, positions = found.scores[wanted], found.positions[wanted]
        first = positions[: one.rerank_depth]
        if not len(first):
            return Found(scores, positions, found.images, scores)
        began = time.monotonic()
        vectors_ND = torch.from_numpy(found.images.vectors(first)).to(self._device)
        image_1D, text_1D = (
            torch.from_numpy(half)[None].to(self._device) for half in (image_D, text_D)
        )
        added_N = self._head.rerank(image_1D, text_1D, vectors_ND[None])[0].float().cpu().numpy()
        self._pair_s = max(_FORGET * self._pair_s, (time.monotonic() - began) / max(1, len(first)))
        reranked_N = scores[: len(first)] + added_N
        order = np.argsort(-reranked_N, kind="stable")
        scores[: len(first)], positions[: len(first)] = scores[order], first[order]
        below = np.full(len(scores) - len(first), np.nan, np.float32)
        return Found(scores, positions, found.images, np.append(reranked_N[order], below))
