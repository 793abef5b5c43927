"""Search of one shard: what an index or the flat search proposes is measured exactly.

Similarity means one thing here: the float64 product of the float32 normalised features, rounded to
6 decimals; ties go to the lower row. The products of float32 numbers are exact in float64. Their
sum is wrong by D 2^-53 at most, and differs with its order, so with the device: where a similarity
is so near to the middle of two decimals, it is summed up in two parts, the first of which is exact.
So it is the same everywhere. HNSW and IVF are searched once: what they miss is missed.

A list of neighbours is an array of keys, similarity and row packed into one int64 that sorts by
similarity descending, then by row; lists merge by sorting. Unused entries at the end are NOTHING.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raycd.config import MineConfig
from raycd.mine import flat
from raycd.mine.pools import Rows

Keys = NDArray[np.int64]

DECIMALS = 6
UNIT = 10**DECIMALS
NOTHING = np.iinfo(np.int64).max
_SPARE = 8  # searched in HNSW and IVF beyond S: the image itself, one more, near-ties
_GPU_BATCH = 8192  # queries of a batch there, at least: some 1.5 GB beside the shard
# Images measured at once: on CPUs those of one query, which stay in cache
_MEASURED = {"cpu": 1, "cuda": 1 << 16}
_PAIRS = 4096  # summed up in two parts at once


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
    key_QS = np.full((len(rows_Q), mine.neighbours + 1), NOTHING)
    for shard in shards:
        found_QS = _batches(_Search(shard, mine, device), rows_Q, unit_QD, threads)
        both = np.concatenate([key_QS, found_QS], axis=1)
        both.sort(axis=1)
        key_QS = both[:, : mine.neighbours + 1].copy()
    return key_QS


def _batches(
    search: _Search, rows_Q: Rows, unit_QD: NDArray[np.float32], threads: int
) -> NDArray[np.int64]:
    query_QD, before = _tensor(unit_QD).to(search.device), torch.get_num_threads()
    rows = torch.from_numpy(rows_Q.astype(np.int64)).to(search.device)
    on_cpu = search.device == "cpu"
    count, size = (threads or before) if on_cpu else 1, search.mine.batch_size
    rounds = -(-len(rows_Q) // (max(size, 1 if on_cpu else _GPU_BATCH) * count))
    number = min(len(rows_Q), rounds * count)  # as many for each thread
    parts = rows.tensor_split(number), query_QD.tensor_split(number)
    try:
        # torch releases Python's lock. MKL keeps one number of threads for the whole process.
        with (
            flat.arithmetic(),
            ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool,
        ):
            return torch.cat(list(pool.map(search, *parts))).cpu().numpy()
    finally:
        torch.set_num_threads(before)


class _Search:
    """Search of a batch of queries among the images of a shard."""

    def __init__(self, shard: Shard, mine: MineConfig, device: str) -> None:
        self.mine, self.device = mine, device
        self.unit_PD = _tensor(shard.unit_PD).to(device)
        self.rows_P = torch.from_numpy(shard.rows_P.astype(np.int64)).to(device)
        self.index = None
        if shard.index is not None:
            from raycd.index import approximate  # FAISS: the flat search needs none

            self.index = approximate.Opened(shard.index, mine)
            self.one_thread = approximate.one_thread

    @torch.inference_mode()
    def __call__(self, rows_B: Tensor, query_BD: Tensor) -> Tensor:
        """Return keys (B, S + 1), sorted."""
        size = self.mine.neighbours + 1
        if self.index is None:
            # One more, for one of them is the image itself
            position_BC, count_B, crowded_B = flat.nearest(
                query_BD, self.unit_PD, size + 1, self.mine.floor
            )
        else:
            with self.one_thread():
                _, found = self.index(query_BD.numpy(), min(size - 1 + _SPARE, len(self.rows_P)))
            position_BC, count_B = torch.from_numpy(found), torch.from_numpy((found >= 0).sum(1))
            position_BC, crowded_B = position_BC.clamp(min=0), count_B < 0
        product_BC = self._products(query_BD, position_BC, count_B)
        key_BC = self._keys(rows_B, query_BD, position_BC, product_BC)
        there_BC = torch.arange(key_BC.shape[1], device=key_BC.device) < count_B[:, None]
        key_BS = _first(torch.where(there_BC, key_BC, NOTHING), size)
        if crowded_B.any():
            key_BS[crowded_B] = self._with_all(rows_B[crowded_B], query_BD[crowded_B])
        return key_BS

    def _products(self, query_BD: Tensor, position_BC: Tensor, count_B: Tensor) -> Tensor:
        """Return the float64 products (B, C) of queries with the first `count_B` images of each."""
        product_BC = query_BD.new_zeros(position_BC.shape, dtype=torch.float64)
        wide_BD1, dim = query_BD.double()[:, :, None], query_BD.shape[1]
        counts = count_B.tolist()
        step = max(1, _MEASURED[self.device] // max(1, *counts))
        for start in range(0, len(counts), step):
            own = slice(start, start + step)
            most = max(counts[own])
            near = self.unit_PD.index_select(0, position_BC[own, :most].reshape(-1))
            near_BCD = near.double().view(len(counts[own]), most, dim)
            product_BC[own, :most] = torch.bmm(near_BCD, wide_BD1[own])[..., 0]
        return product_BC

    def _with_all(self, rows_B: Tensor, query_BD: Tensor) -> Tensor:
        """Return keys (B, S + 1), sorted, of queries that are compared with all images exactly."""
        size, step = self.mine.neighbours + 1, flat.TILE[self.device]
        key_BS = rows_B.new_full((len(rows_B), size), NOTHING)
        for start in range(0, len(self.rows_P), step):
            product_BC = query_BD.double() @ self.unit_PD[start : start + step].double().T
            position_C = torch.arange(start, start + product_BC.shape[1], device=rows_B.device)
            key_BC = self._keys(rows_B, query_BD, position_C.expand(product_BC.shape), product_BC)
            key_BS = _first(torch.cat([key_BS, key_BC], 1), size)
        return key_BS

    def _keys(
        self, rows_B: Tensor, query_BD: Tensor, position_BC: Tensor, product_BC: Tensor
    ) -> Tensor:
        """Return keys (B, C) of images with these float64 products."""
        scaled_BC = product_BC * UNIT
        micro_BC = scaled_BC.round()
        # Two sums and their products with UNIT differ by less
        wrong = 2 * (query_BD.shape[1] + 1) * 2.0**-53 * UNIT
        middle_BC = (scaled_BC - scaled_BC.floor() - 0.5).abs() <= wrong
        for pair in middle_BC.nonzero().split(_PAIRS) if middle_BC.any() else ():
            row, column = pair.T
            one, other = query_BD[row], self.unit_PD[position_BC[row, column].long()]
            micro_BC[row, column] = (_in_two_parts(one, other) * UNIT).round()
        row_BC = self.rows_P[position_BC.long()]
        wanted_BC = (row_BC != rows_B[:, None]) & (micro_BC / UNIT >= self.mine.floor)
        return torch.where(wanted_BC, (UNIT - micro_BC.long()) << 32 | row_BC, NOTHING)


def _in_two_parts(one_KD: Tensor, other_KD: Tensor) -> Tensor:
    """Return products (K,) in float64 that do not depend on the order of the sum.

    Multiples of 2^-40 add up without rounding. The sum of what they leave, below 2^-41 each, is
    wrong by less than 1e-22.
    """
    product_KD = one_KD.double() * other_KD.double()
    coarse_KD = (product_KD * 2.0**40).round() * 2.0**-40
    return coarse_KD.sum(1) + (product_KD - coarse_KD).sum(1)


def _first(key_BC: Tensor, size: int) -> Tensor:
    """Return the first keys (B, size), sorted, NOTHING where there are fewer."""
    if key_BC.shape[1] < size:
        rest_BC = key_BC.new_full((len(key_BC), size - key_BC.shape[1]), NOTHING)
        key_BC = torch.cat([key_BC, rest_BC], 1)
    return key_BC.sort(1).values[:, :size]


def _tensor(array: NDArray[np.float32]) -> Tensor:
    """Return a tensor over the same memory, which may be read-only: it is never written."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)
