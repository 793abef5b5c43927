"""The features of an index on a GPU, where a query is compared with every image.

A million features of 640 numbers are 2.4 GiB there, which a card of 2 TB/s reads in a millisecond:
so every search is exact, whatever the kind of the index.

Shapes: G images, B queries, N of them at once, K results, D feature size.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from raycd.index.blocks import SIZE
from raycd.index.structure import Found, Mask, Structure

SCORES = 1 << 27  # most scores at once: 512 MiB


class OnGpu:
    """A copy of the features of a structure, in float32, on a device of torch.

    Raises torch.OutOfMemoryError where it has no room for them.
    """

    def __init__(self, structure: Structure, device: str) -> None:
        self.index = structure.index
        self.effort = 0
        self._structure, size = structure, int(self.index.ntotal)
        self._unit_GD = torch.empty((size, int(self.index.d)), device=device)
        for start in range(0, size, SIZE):
            rows_N = np.arange(start, min(start + SIZE, size))
            self._unit_GD[start : start + SIZE] = torch.from_numpy(structure.vectors(rows_N))

    def search(self, query_BD: NDArray[np.float32], k: int, allowed_G: Mask | None = None) -> Found:
        """Return the same as `exact`: every search is exact."""
        return self.exact(query_BD, k, allowed_G)

    @torch.inference_mode()
    def exact(self, query_BD: NDArray[np.float32], k: int, allowed_G: Mask | None = None) -> Found:
        """Search as `Structure.exact` describes."""
        scores, positions = zip(*self._parts(query_BD, k, allowed_G), strict=True)
        scores_BK: NDArray[np.float32] = torch.cat(scores).cpu().numpy()
        positions_BK: NDArray[np.int64] = torch.cat(positions).cpu().numpy()
        positions_BK[np.isneginf(scores_BK)] = -1
        return scores_BK, positions_BK

    def _parts(
        self, query_BD: NDArray[np.float32], k: int, allowed_G: Mask | None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield scores and positions of some queries at a time."""
        device = self._unit_GD.device
        hidden_G = None if allowed_G is None else torch.from_numpy(~allowed_G).to(device)
        queries = torch.from_numpy(query_BD).to(device)
        for query_ND in torch.split(queries, max(1, SCORES // max(1, len(self._unit_GD)))):
            rough_NG = query_ND @ self._unit_GD.T
            if hidden_G is not None:
                rough_NG.masked_fill_(hidden_G, -torch.inf)
            rough_NK, position_NK = torch.topk(rough_NG, k)
            del rough_NG
            # Equal features have equal scores, which a product of matrices does not promise
            found_NKD = self._unit_GD[position_NK].double()
            score_NK = torch.einsum("nkd,nd->nk", found_NKD, query_ND.double()).float()
            yield torch.where(rough_NK.isneginf(), rough_NK, score_NK), position_NK

    def vectors(self, positions_N: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return features as `Structure.vectors` describes."""
        return self._structure.vectors(positions_N)
