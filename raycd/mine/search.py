"""Search of one shard: images that are proposed in float32 or by an index are measured exactly.

Similarity means one thing here: the product of the float32 normalised features, rounded to 6
decimals; ties go to the lower row. It is the same on every device (`_micro`).

flat: FAISS, on GPUs torch in TF32, proposes a few more images than are wanted. Their scores differ
from similarities by `margin` at most. So whether an image that was not proposed may count is known,
and for a query for which it may, more are proposed, at worst all. hnsw and ivf: FAISS's structure
is searched once, and what it misses is missed.

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

Keys = NDArray[np.int64]

DECIMALS = 6
UNIT = 10**DECIMALS
NOTHING = np.iinfo(np.int64).max
BLOCK = 1 << 15  # images that a GPU scores at once
BATCH = 4096  # most queries searched at once
DEEPER = 8  # times as many images are proposed where those may not be all that count
_PAIRS = {"cpu": 64, "cuda": 1 << 16}  # measured at once: on CPUs they stay in a core's cache
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
        matmul.fp32_precision = "tf32"  # at worst, as `margin` says
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

    @torch.inference_mode()
    def __call__(self, rows_B: Tensor, query_BD: Tensor, key_BS: Tensor, depth: int = 0) -> Tensor:
        """Return the first keys (B, S + 1), sorted, of `key_BS` and those of the shard.

        An image that is not among the `depth` proposed scores no more than the last of these.
        """
        device, (images, dim) = query_BD.device.type, self.unit_PD.shape
        depth = depth or proposed(key_BS.shape[1], device)
        if self.index is not None:
            _, found_BC = self.index(query_BD.numpy(), min(depth, images))
            return self._merged(rows_B, query_BD, key_BS, torch.from_numpy(found_BC))
        deeper = depth * DEEPER
        if deeper >= images:  # an eighth of them costs as much as all, which stand in order
            size = max(1, _MOST // images)
            rows, queries, keys = (torch.split(each, size) for each in (rows_B, query_BD, key_BS))
            found = map(self._merged, rows, queries, keys, [None] * len(rows))
            return torch.cat(list(found))
        score_BC, position_BC = nearest(query_BD, self.unit_PD, depth)
        found_BS = self._merged(rows_B, query_BD, key_BS, position_BC)
        # NOTHING is far below any floor; rounding to 6 decimals may add half of the last one twice
        last_B = (1 - (found_BS[:, -1] >> 32) / UNIT).clamp(min=self.mine.floor)
        unsure_B = score_BC[:, -1] + (margin(dim, device) + 1 / UNIT) >= last_B
        for own in torch.split(unsure_B.nonzero()[:, 0], max(1, _MOST // deeper)):
            if len(own):
                found_BS[own] = self(rows_B[own], query_BD[own], key_BS[own], deeper)
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


def proposed(wanted: int, device: str) -> int:
    """Return how many images are proposed where so many are wanted.

    The image itself may be among them, and others come as near as a score is wrong: more, the more
    are wanted, for these lie closer together.
    """
    return wanted + 8 + wanted // {"cpu": 32, "cuda": 2}[device]


def nearest(query_BD: Tensor, unit_PD: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """Return scores (B, C), descending, and positions (B, C) of the `depth` images of most."""
    if query_BD.device.type == "cpu":
        found = faiss.knn(
            query_BD.numpy(), unit_PD.numpy(), depth, metric=faiss.METRIC_INNER_PRODUCT
        )
        return torch.from_numpy(found[0]), torch.from_numpy(found[1])
    return by_blocks(query_BD, unit_PD, depth)


def by_blocks(query_BD: Tensor, unit_PD: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """Return what `nearest` does, by torch."""
    best_BC = query_BD.new_empty((len(query_BD), 0))
    position_BC = best_BC.long()
    for start in range(0, len(unit_PD), BLOCK):
        score_BP = query_BD @ unit_PD[start : start + BLOCK].T
        score_BC, own_BC = score_BP.topk(min(depth, score_BP.shape[1]))
        best_BC, position_BC = (
            torch.cat([best_BC, score_BC], 1),
            torch.cat([position_BC, own_BC + start], 1),
        )
        best_BC, at_BC = best_BC.topk(min(depth, best_BC.shape[1]))
        position_BC = position_BC.gather(1, at_BC)
    return best_BC, position_BC


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


def _products(query_BD: Tensor, unit_PD: Tensor, position_BC: Tensor) -> Tensor:
    """Return the products (B, C) of queries and their images in float64."""
    if position_BC.shape[1] > _WIDE:
        parts = torch.split(position_BC, _WIDE, 1)
        return torch.cat([_products(query_BD, unit_PD, part) for part in parts], 1)
    product_BC = query_BD.new_empty(position_BC.shape, dtype=torch.float64)
    size = max(1, _PAIRS[query_BD.device.type] // max(1, position_BC.shape[1]))
    for query_KD, position_KC, product_KC in zip(
        *(torch.split(each, size) for each in (query_BD, position_BC, product_BC)), strict=True
    ):
        image_ED = unit_PD.index_select(0, position_KC.clamp(min=0).flatten()).double()
        image_KCD = image_ED.view(*position_KC.shape, unit_PD.shape[1])
        torch.bmm(image_KCD, query_KD.double()[:, :, None], out=product_KC[:, :, None])
    return product_BC


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
