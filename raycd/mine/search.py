"""Search of one shard: images that are proposed in float32 or by an index are measured exactly.

Similarity means one thing here: the product of the float32 normalised features, rounded to 6
decimals; ties go to the lower row. It is the same on every device (`_similarities`).

flat: a product of float32 matrices, on GPUs in TF32, scores a batch of queries with a block of
images. Scores differ from similarities by `margin` at most, which is small beside the distances of
most images: hardly more are proposed than are wanted. hnsw and ivf: FAISS's structure is searched
once, and what it misses is missed.

A list of neighbours is an array of keys, similarity and row packed into one int64 that sorts by
similarity descending, then by row; lists merge by sorting. Unused entries at the end are NOTHING.

Shapes: P images of a shard, B queries of a batch, E proposed pairs (query, image) of these.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raycd.config import MineConfig
from raycd.mine.pools import Rows
from raycd.model.private import onednn_product

Keys = NDArray[np.int64]

DECIMALS = 6
UNIT = 10**DECIMALS
NOTHING = np.iinfo(np.int64).max
BLOCK = 1 << 15  # images scored at once
# Most queries of a batch. On CPUs their scores stay in the cache that the cores share.
BATCH = {"cpu": 128, "cuda": 4096}
_PAIRS = {"cpu": 256, "cuda": 1 << 14}  # measured at once: on CPUs they stay in a core's cache
_MERGED = 1 << 20  # pairs merged at once, where a query ties with very many images
_SPARE = 8  # searched in HNSW and IVF beyond S: the image itself, one more, near-ties
_GROUP = 32  # images of which only the best score counts for a limit

_ONEDNN: Any = torch.backends.mkldnn  # its types lack what is used here


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
    size = min(mine.batch_size, BATCH[device])
    parts, keys = [torch.split(each, size) for each in queries], torch.split(key_QS, size)
    with ExitStack() as undo:
        # MKL keeps one number of threads for the whole process
        undo.callback(torch.set_num_threads, torch.get_num_threads())
        # As `margin` says, whatever the process had chosen
        for setting, precision in ((torch.backends.cuda.matmul, "tf32"), (_ONEDNN.matmul, "ieee")):
            undo.callback(setattr, setting, "fp32_precision", setting.fp32_precision)
            setting.fp32_precision = precision
        # torch releases Python's lock
        pool = undo.enter_context(
            ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
        )
        for shard in shards:
            keys = tuple(pool.map(_Search(shard, mine, device), *parts, keys))
    return torch.cat(keys).cpu().numpy()


class _Search:
    """Search of a batch of queries among the images of a shard."""

    def __init__(self, shard: Shard, mine: MineConfig, device: str) -> None:
        self.mine, self.unit_PD = mine, _tensor(shard.unit_PD).to(device)
        self.rows_P = _tensor(shard.rows_P).to(device, torch.int64)
        self.index = None
        if shard.index is not None:
            from raycd.index import approximate  # FAISS: the flat search needs none

            self.index = approximate.Opened(shard.index, mine)
            self.one_thread = approximate.one_thread

    @torch.inference_mode()
    def __call__(self, rows_B: Tensor, query_BD: Tensor, key_BS: Tensor) -> Tensor:
        """Return the first keys (B, S + 1), sorted, of `key_BS` and those of the shard."""
        if self.index is not None:
            with self.one_thread():
                depth = min(self.mine.neighbours + _SPARE, len(self.rows_P))
                found_BC = torch.from_numpy(self.index(query_BD.numpy(), depth)[1])
            query_E, rank_E = (found_BC >= 0).nonzero(as_tuple=True)
            return self._merged(rows_B, query_BD, key_BS, query_E, found_BC[query_E, rank_E])
        for start, block_PD in blocks(self.unit_PD):
            # The last key is of the last image wanted: NOTHING is far below any floor
            last_B = 1 - (key_BS[:, -1] >> 32) / UNIT
            query_E, position_E = near(
                query_BD,
                block_PD,
                key_BS.shape[1] + 1,  # for one of them is the image itself
                last_B.clamp(min=self.mine.floor),
            )
            key_BS = self._merged(rows_B, query_BD, key_BS, query_E, position_E + start)
        return key_BS

    def _merged(
        self, rows_B: Tensor, query_BD: Tensor, key_BS: Tensor, query_E: Tensor, position_E: Tensor
    ) -> Tensor:
        """Return the first keys of `key_BS` and those of pairs, which are sorted by query."""
        size = key_BS.shape[1]
        for query_M, position_M in zip(
            torch.split(query_E, _MERGED), torch.split(position_E, _MERGED), strict=True
        ):
            similarity_M = _similarities(query_BD, self.unit_PD, query_M, position_M)
            micro_M, row_M = (similarity_M * UNIT).round(), self.rows_P[position_M]
            wanted_M = (row_M != rows_B[query_M]) & (micro_M / UNIT >= self.mine.floor)
            key_M = torch.where(wanted_M, (UNIT - micro_M.long()) << 32 | row_M, NOTHING)
            count_B = query_M.bincount(minlength=len(key_BS))
            before_B = count_B.cumsum(0) - count_B
            slot_M = torch.arange(len(query_M), device=key_BS.device) - before_B[query_M]
            more_BC = key_BS.new_full((len(key_BS), int(count_B.max())), NOTHING)
            more_BC[query_M, slot_M] = key_M
            key_BS = torch.cat([key_BS, more_BC], 1).sort(1).values[:, :size]
        return key_BS


def blocks(unit_PD: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield the position of a block's first image, and the images, of which all but the last few
    are whole groups.
    """
    whole = len(unit_PD) // _GROUP * _GROUP
    for start, end in pairwise(sorted({*range(0, whole, BLOCK), whole, len(unit_PD)})):
        yield start, unit_PD[start:end]


def near(query_BD: Tensor, block_PD: Tensor, count: int, least_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return queries and positions (E,): all images that may be among a query's first `count`.

    They are sorted by query; images of a similarity below `least_B` may be left out.

    If `count` images have a score of t or above, their similarities are t - margin or above; so an
    image of a score below t - 2 margin is not among the first `count`, nor does it tie with the
    last of them, unless rounding to 6 decimals made it: another 1e-6. The best scores of `count`
    groups of images are such ones, and quicker to find than the best of all.
    """
    wrong = margin(query_BD.shape[1], query_BD.device.type)
    score_BP = product(query_BD, block_PD)
    images = score_BP.shape[1]
    group = _GROUP if images % _GROUP == 0 and images >= 2 * count * _GROUP else 1
    score_BIG = score_BP.view(len(score_BP), group, images // group)
    best_BG = score_BIG.amax(1)
    if images >= count:
        least_B = least_B.maximum(best_BG.topk(count, sorted=False).values.amin(1) - wrong)
    limit_B = least_B - wrong - 1 / UNIT
    query_H, at_H = (best_BG >= limit_B[:, None]).nonzero(as_tuple=True)
    hit_E, part_E = (score_BIG[query_H, :, at_H] >= limit_B[query_H, None]).nonzero(as_tuple=True)
    return query_H[hit_E], part_E * best_BG.shape[1] + at_H[hit_E]


def product(query_BD: Tensor, block_PD: Tensor) -> Tensor:
    """Return the scores (B, P) of queries and images."""
    on_cpu = query_BD.device.type == "cpu"
    score_BP = onednn_product(query_BD, block_PD) if on_cpu else None
    return query_BD @ block_PD.T if score_BP is None else score_BP


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


def _similarities(query_BD: Tensor, unit_PD: Tensor, query_E: Tensor, position_E: Tensor) -> Tensor:
    """Return the products (E,) of pairs in float64, whatever the order of the sum.

    The products of float32 numbers are exact in float64. Added to 6144 and taken from it again,
    they are multiples of 2^-40, which add up without rounding; the sum of what that leaves, below
    2^-41 each, is wrong by less than 1e-22.
    """
    found, size = [], _PAIRS[query_BD.device.type]
    for query_K, position_K in zip(
        torch.split(query_E, size), torch.split(position_E, size), strict=True
    ):
        product_KD = query_BD.index_select(0, query_K).double()
        product_KD *= unit_PD.index_select(0, position_K)
        coarse_KD = (product_KD + 6144).sub_(6144)
        found.append(coarse_KD.sum(1) + product_KD.sub_(coarse_KD).sum(1))
    return torch.cat(found)


def _tensor(array: NDArray[Any]) -> Tensor:
    """Return a tensor over the same memory, which may be read-only: it is never written."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)
