"""Search of one shard: images that rough products or an index propose are measured exactly.

Similarity means one thing here: the product of the float32 normalised features, rounded to 6
decimals; ties go to the lower row. It is the same on every device (`_micro`).

flat: a few more images than are wanted are proposed (`raycd.mine.proposals`). Whether one that was
not may count is known, and for a query for which it may, more are proposed, at worst all. hnsw and
ivf: FAISS's structure is searched once, and what it misses is missed.

A list of neighbours is an array of keys, similarity and row packed into one int64 that sorts by
similarity descending, then by row; lists merge by sorting. Unused entries at the end are NOTHING.

Shapes: P images of a shard, B queries of a batch, C images proposed to each.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raycd.config import MineConfig
from raycd.index import approximate
from raycd.mine.pools import Rows
from raycd.mine.proposals import Arithmetic, arithmetic, at_most, cut_off, nearest, proposed

Keys = NDArray[np.int64]

DECIMALS = 6
UNIT = 10**DECIMALS
NOTHING = np.iinfo(np.int64).max
BATCH = 4096  # most queries searched at once
DEEPER = 8  # times as many images are proposed where those may not be all that count
UNSURE = 0.25  # of queries: where bf16 leaves more, fp32 is quicker
_PAIRS = 1 << 16  # measured at once on a GPU
_WIDE = 1 << 12  # rows of float64 at once
_MOST = 1 << 19  # compared at once, where a query needs many: 40 MiB


@dataclass(frozen=True)
class Shard:
    """A part of a pool's images, ready to be searched."""

    unit_PD: NDArray[np.float32]  # their normalised features; may be read-only
    rows_P: Rows  # their rows of the feature matrix, ascending
    index: NDArray[np.uint8] | None = None  # HNSW or IVF, serialised


def decode(key: Keys) -> tuple[Rows, NDArray[np.float64]]:
    """Return the rows and similarities of keys other than NOTHING."""
    return (key & 0xFFFFFFFF).astype(np.int32), (UNIT - (key >> 32)) / UNIT


def search(
    rows_Q: Rows,
    unit_QD: NDArray[np.float32],
    shards: Iterable[Shard],
    mine: MineConfig,
    *,
    threads: int = 0,
    device: str = "cpu",
) -> Keys:
    """Return sorted keys (Q, S + 1): the first S images at or above the floor, and one more.

    An image (`rows_Q`, with its normalised features) is not a neighbour of itself; its duplicates
    are. On CPUs batches are searched in parallel, one thread each (0: as many as torch uses).
    """
    count = (threads or torch.get_num_threads()) if device == "cpu" else 1
    key_QS = torch.full((len(rows_Q), mine.neighbours + 1), NOTHING, device=device)
    queries = _tensor(rows_Q).to(device, torch.int64), _tensor(unit_QD).to(device)
    size = max(1, min(mine.batch_size, BATCH, -(-len(rows_Q) // count)))
    parts, keys = [torch.split(each, size) for each in queries], torch.split(key_QS, size)
    with ExitStack() as undo:
        # MKL keeps one number of threads for the whole process
        undo.callback(torch.set_num_threads, torch.get_num_threads())
        matmul: Any = torch.backends.cuda.matmul
        undo.callback(setattr, matmul, "fp32_precision", matmul.fp32_precision)
        matmul.fp32_precision = "tf32"  # at worst, as `at_most` says
        # FAISS and torch release Python's lock
        pool = undo.enter_context(ThreadPoolExecutor(count, initializer=_one_thread))
        for shard in shards:
            keys = tuple(pool.map(_Search(shard, mine, device), *parts, keys))
    return torch.cat(keys).cpu().numpy()


def _one_thread() -> None:
    """Keep the calls of this thread to itself."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)


class _Search:
    """Search of a batch of queries among the images of a shard."""

    def __init__(self, shard: Shard, mine: MineConfig, device: str) -> None:
        self.mine, self.unit_PD = mine, _tensor(shard.unit_PD).to(device)
        self.rows_P = _tensor(shard.rows_P).to(device, torch.int64)
        self.index = None if shard.index is None else approximate.Opened(shard.index, mine)
        self.kind: Arithmetic = "fp32"
        if self.index is None:
            self.kind = arithmetic(device, len(self.unit_PD), mine.neighbours + 1)
        self.cut = cut_off(self.unit_PD) if self.kind == "bf16" else 0.0

    @torch.inference_mode()
    def __call__(
        self,
        rows_B: Tensor,
        query_BD: Tensor,
        key_BS: Tensor,
        kind: Arithmetic | None = None,
        depth: int = 0,
    ) -> Tensor:
        """Return the first keys (B, S + 1), sorted, of `key_BS` and those of the shard.

        An image that is not among the `depth` proposed scores no more than the last of these. Both,
        `kind` and `depth`, are given for queries of which the search before was not sure.
        """
        images, dim = self.unit_PD.shape
        kind = kind or self.kind
        depth = depth or proposed(key_BS.shape[1], kind)
        if self.index is not None:
            _, found_BC = self.index(query_BD.numpy(), min(depth, images))
            return self._merged(rows_B, query_BD, key_BS, torch.from_numpy(found_BC))
        if depth * DEEPER >= images:  # an eighth costs as much as all, which stand in order
            size = max(1, _MOST // images)
            rows, queries, keys = (torch.split(each, size) for each in (rows_B, query_BD, key_BS))
            found = map(self._merged, rows, queries, keys, [None] * len(rows))
            return torch.cat(list(found))
        score_BC, position_BC = nearest(query_BD, self.unit_PD, depth, kind)
        found_BS = self._merged(rows_B, query_BD, key_BS, position_BC)
        # NOTHING is far below any floor; rounding to 6 decimals may add half of the last one twice
        last_B = (1 - (found_BS[:, -1] >> 32) / UNIT).clamp(min=self.mine.floor)
        cut = self.cut + cut_off(query_BD) if kind == "bf16" else 0.0
        unsure_B = at_most(score_BC[:, -1], dim, kind, cut) + 1 / UNIT >= last_B
        if kind == "bf16":
            if unsure_B.float().mean() > UNSURE:
                self.kind = "fp32"
            kind, depth = "fp32", proposed(key_BS.shape[1], "fp32")
        else:
            depth *= DEEPER
        for own in torch.split(unsure_B.nonzero()[:, 0], max(1, _MOST // depth)):
            if len(own):
                found_BS[own] = self(rows_B[own], query_BD[own], key_BS[own], kind, depth)
        return found_BS

    def _merged(
        self, rows_B: Tensor, query_BD: Tensor, key_BS: Tensor, position_BC: Tensor | None
    ) -> Tensor:
        """Return the first keys of `key_BS` and those of images (-1: none; None: all)."""
        if position_BC is None:
            product_BC = _products_of_all(query_BD, self.unit_PD)
            position_BC = torch.arange(len(self.rows_P), device=self.rows_P.device)
            position_BC = position_BC.expand(product_BC.shape)
        else:
            product_BC = _products(query_BD, self.unit_PD, position_BC)
        micro_BC = _micro(product_BC, query_BD, self.unit_PD, position_BC)
        row_BC = self.rows_P[position_BC]
        wanted_BC = (row_BC != rows_B[:, None]) & (micro_BC / UNIT >= self.mine.floor)
        key_BC = torch.where(
            wanted_BC & (position_BC >= 0), (UNIT - micro_BC.long()) << 32 | row_BC, NOTHING
        )
        return torch.cat([key_BS, key_BC], 1).sort(1).values[:, : key_BS.shape[1]]


def _products(query_BD: Tensor, unit_PD: Tensor, position_BC: Tensor) -> Tensor:
    """Return the products (B, C) of queries and their images in float64."""
    if position_BC.shape[1] > _WIDE:
        parts = torch.split(position_BC, _WIDE, 1)
        return torch.cat([_products(query_BD, unit_PD, part) for part in parts], 1)
    known_BC = position_BC.clamp(min=0)
    product_BC = query_BD.new_empty(position_BC.shape, dtype=torch.float64)
    fill = _one_by_one if query_BD.device.type == "cpu" else _many_at_once
    fill(query_BD, unit_PD, known_BC, product_BC)
    return product_BC


def _one_by_one(query_BD: Tensor, unit_PD: Tensor, at_BC: Tensor, product_BC: Tensor) -> None:
    """Fill in products: the images of one query stay in a core's cache."""
    for query_D, at_C, product_C in zip(query_BD, at_BC, product_BC, strict=True):
        torch.mv(unit_PD.index_select(0, at_C).double(), query_D.double(), out=product_C)


def _many_at_once(query_BD: Tensor, unit_PD: Tensor, at_BC: Tensor, product_BC: Tensor) -> None:
    """Fill in products by few launches of a GPU."""
    size = max(1, _PAIRS // max(1, at_BC.shape[1]))
    for query_KD, at_KC, product_KC in zip(
        *(torch.split(each, size) for each in (query_BD, at_BC, product_BC)), strict=True
    ):
        image_ED = unit_PD.index_select(0, at_KC.flatten()).double()
        image_KCD = image_ED.view(*at_KC.shape, unit_PD.shape[1])
        torch.bmm(image_KCD, query_KD.double()[:, :, None], out=product_KC[:, :, None])


def _products_of_all(query_BD: Tensor, unit_PD: Tensor) -> Tensor:
    """Return the products (B, P) of queries and all images in float64."""
    wide_BD = query_BD.double()
    return torch.cat([wide_BD @ part.double().T for part in torch.split(unit_PD, _WIDE)], 1)


def _micro(product_BC: Tensor, query_BD: Tensor, unit_PD: Tensor, position_BC: Tensor) -> Tensor:
    """Return products in millionths, rounded, whatever the order of their sums.

    The products of float32 numbers are exact in float64, and a sum of D of them is wrong by at most
    D 2^-53. Where that might decide how it is rounded, it is taken in two parts: added to 6144 and
    taken from it again, products are multiples of 2^-40, which add up without rounding; the sum
    of what that leaves, below 2^-41 each, is wrong by less than 1e-22.
    """
    micro_BC, (_, dim) = product_BC.mul_(UNIT), unit_PD.shape
    to_half_BC = (micro_BC - micro_BC.floor()).sub_(0.5).abs_()
    one_E, other_E = (to_half_BC <= (dim + 1) * 2.0**-51 * UNIT).nonzero(as_tuple=True)
    for one_K, other_K in zip(torch.split(one_E, _WIDE), torch.split(other_E, _WIDE), strict=True):
        product_KD = query_BD[one_K].double() * unit_PD[position_BC[one_K, other_K]]
        coarse_KD = (product_KD + 6144).sub_(6144)
        exact_K = coarse_KD.sum(1) + product_KD.sub_(coarse_KD).sum(1)
        micro_BC[one_K, other_K] = exact_K * UNIT
    return micro_BC.round_()


def _tensor(array: NDArray[Any]) -> Tensor:
    """Return a tensor over the same memory, which may be read-only: it is never written."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)
