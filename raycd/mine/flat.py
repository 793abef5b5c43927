"""Flat search in torch, on any device: every image that may be among a query's first ones.

A product of float32 matrices scores a batch of queries with a tile of images. Scores differ from
similarities by rounding, by `margin` at most, which is small beside the distances of most images:
so nearly as few images are kept as are wanted, and only those are measured exactly
(`raycd.mine.search`). A query's limit rises with what is found, so of a later tile hardly any
image is kept, and a tile costs one comparison a score.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from raycd.model.private import onednn_product

TILE = {"cpu": 1024, "cuda": 8192}  # images scored at once
FIRST = 1024  # of the first tile: it gives the first limit
ROUNDED = 1e-6  # similarities are rounded to 6 decimals: two may be equal that differ by less

_ONEDNN: Any = torch.backends.mkldnn  # its types lack what is used here


def margin(dim: int, device: str) -> float:
    """Return the most by which a score differs from the product of two vectors of length 1.

    Of such vectors sum |q_i p_i| <= |q| |p| <= 1 + 2^-21, their own rounding included. In float32,
    in whatever order and fused or not, a product of D numbers is wrong by at most D u / (1 - D u)
    of that sum, u = 2^-24 (Higham, Accuracy and Stability of Numerical Algorithms, 3.1): below
    2 D u, which is 7.6e-5 for D = 640.

    TF32 keeps 10 bits of each factor, at worst by cutting off the others: 2^-10 of it. A product is
    then wrong by 2 x 2^-10 + 2^-20 of itself, and exact in float32. Tensor cores cut sums off
    instead of rounding them, after shifting all addends to the largest (Fasi et al., Numerical
    behavior of NVIDIA tensor cores, 2021): 2 u each, with a factor of two to spare 4 D u. Together
    2.1e-3 for D = 640. Cards without TF32 compute in float32.
    """
    if device == "cpu":
        return dim * 2.0**-23
    return 2.0**-9 + 2.0**-19 + dim * 2.0**-22


@contextmanager
def arithmetic() -> Iterator[None]:
    """Let products of float32 matrices be those of `margin`, whatever the process had chosen."""
    chosen = [(torch.backends.cuda.matmul, "tf32"), (_ONEDNN.matmul, "ieee")]
    before = [setting.fp32_precision for setting, _ in chosen]
    try:
        for setting, precision in chosen:
            setting.fp32_precision = precision
        yield
    finally:
        for (setting, _), precision in zip(chosen, before, strict=True):
            setting.fp32_precision = precision


def product(query_BD: Tensor, tile_TD: Tensor) -> Tensor:
    """Return the scores (B, T) of queries and images."""
    on_cpu = query_BD.device.type == "cpu"
    score_BT = onednn_product(query_BD, tile_TD) if on_cpu else None
    return query_BD @ tile_TD.T if score_BT is None else score_BT


def nearest(
    query_BD: Tensor, unit_PD: Tensor, count: int, floor: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return positions (B, C) of images, how many there are (B,), and which queries are crowded.

    They are all images that may be among the first `count` of similarity `floor` or above. A
    crowded query has more of them than there is room for, and none here.
    """
    wrong = margin(query_BD.shape[1], query_BD.device.type)
    kept = Kept(len(query_BD), count, floor - wrong - ROUNDED, 2 * wrong + ROUNDED, query_BD.device)
    for start, score_BT in scores(query_BD, unit_PD):
        kept.add(score_BT, start)
    return kept.all()


def scores(query_BD: Tensor, unit_PD: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield the first image of each tile, and the scores (B, T) of its images."""
    start = 0
    while start < len(unit_PD):
        tile_TD = unit_PD[start : start + (TILE[query_BD.device.type] if start else FIRST)]
        yield start, product(query_BD, tile_TD)
        start += len(tile_TD)


class Kept:
    """The images of a batch of queries whose score reaches the limit of their query.

    If `count` images have a score of t or above, their similarities are t - margin or above; so an
    image of a score below t - 2 margin is not among the first `count`, nor does it tie with the
    last of them, unless rounding to 6 decimals made it: another 1e-6.

    Args:
        least: The limit of all queries, at first.
        slack: 2 margin + 1e-6.
    """

    def __init__(
        self, queries: int, count: int, least: float, slack: float, device: torch.device
    ) -> None:
        self._wanted, self._slack = count, slack
        self.room = max(256, 4 * count)  # of a query, when its limit was just raised
        self._least_B = torch.full((queries,), least, device=device)
        self._crowded_B = torch.zeros(queries, dtype=torch.bool, device=device)
        self._count_B = torch.zeros(queries, dtype=torch.int64, device=device)
        self._bound_B = torch.arange(queries + 1, device=device)
        slots = 2 * self.room + max(FIRST, TILE[device.type])
        self._score_BW = torch.empty((queries, slots), device=device)
        self._position_BW = torch.empty((queries, slots), dtype=torch.int32, device=device)
        self._since = 0

    def add(self, score_BT: Tensor, first: int) -> None:
        """Keep what reaches the limits among the scores of a tile whose first image is `first`."""
        if not first:
            self._raise(score_BT)
        size, flat_score = score_BT.shape[1], score_BT.reshape(-1)
        flat_E = _true(score_BT >= self._least_B[:, None])
        row_E = flat_E // size
        self._put(row_E, flat_E - row_E * size + first, flat_score[flat_E])
        self._since += len(flat_E)
        many = self._since > self._wanted * len(self._count_B)
        if many or int(self._count_B.max()) > 2 * self.room:
            self._narrow()

    def all(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `nearest` returns."""
        self._narrow()
        width = int(self._count_B.max())
        there_BC = torch.arange(width, device=self._count_B.device) < self._count_B[:, None]
        position_BC = torch.where(there_BC, self._position_BW[:, :width], 0)
        return position_BC, self._count_B, self._crowded_B

    def _raise(self, score_BT: Tensor) -> None:
        """Raise the limits to what the best scores of a tile, or of all that is kept, allow."""
        if score_BT.shape[1] >= self._wanted:
            last_B = score_BT.topk(self._wanted, sorted=False).values.amin(1)
            self._least_B = torch.maximum(self._least_B, last_B - self._slack)

    def _narrow(self) -> None:
        """Raise the limits, and drop what no longer reaches them."""
        self._since, width = 0, int(self._count_B.max())
        there_BW = torch.arange(width, device=self._count_B.device) < self._count_B[:, None]
        score_BW = torch.where(there_BW, self._score_BW[:, :width], -torch.inf)
        self._raise(score_BW)
        kept_BW = score_BW >= self._least_B[:, None]
        crowded_B = kept_BW.sum(1) > self.room
        self._crowded_B |= crowded_B
        self._least_B[crowded_B] = torch.inf
        row_E, slot_E = (kept_BW & ~crowded_B[:, None]).nonzero(as_tuple=True)
        position_E = self._position_BW[row_E, slot_E]
        self._count_B.zero_()
        self._put(row_E, position_E, score_BW[row_E, slot_E])

    def _put(self, row_E: Tensor, position_E: Tensor, score_E: Tensor) -> None:
        """Put images, sorted by query, behind those that are there."""
        begin_B = torch.searchsorted(row_E, self._bound_B)
        slot_E = torch.arange(len(row_E), device=row_E.device)
        slot_E += (self._count_B - begin_B[:-1])[row_E]
        at_E = row_E * self._score_BW.shape[1] + slot_E
        self._score_BW.view(-1)[at_E] = score_E
        self._position_BW.view(-1)[at_E] = position_E.int()
        self._count_B += begin_B.diff()


def _true(mask: Tensor) -> Tensor:
    """Return where a mask is true, counted through; eight of it at once, for nearly none is."""
    flat = mask.reshape(-1)
    if len(flat) % 8:
        flat = functional.pad(flat, (0, -len(flat) % 8))
    word_E = flat.view(torch.int64).nonzero()[:, 0]
    at, byte = flat.view(-1, 8)[word_E].nonzero(as_tuple=True)
    return word_E[at] * 8 + byte
