"""Hard negatives: the images most similar to a triplet's target, from the table that mining left.

Hard negatives beside those of the batch are the custom of text retrieval (DPR, Karpukhin et al.,
EMNLP 2020). A triplet has those of its own target alone, and those that it names itself.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from raycd.config import Stage2Config
from raycd.run import local_copy

NONE = -1
_EQUAL = 1 - 5e-7  # similarities are rounded to 6 decimals: the same picture under another id


def mined(config: Stage2Config, folder: str) -> pa.Table | None:
    """Read the neighbours from what the stage `mine` wrote, where hard negatives are asked for.

    `folder` is a path, or a URI of which this process keeps a copy.
    """
    if not config.hard_negatives:
        return None
    return pq.read_table(local_copy(folder) / "neighbours.parquet")


class HardNegatives:
    """The nearest images of each image that was mined for.

    Args:
        table: Table raycd.mine.NEIGHBOURS, whose rows are those of the image features.
        count: How many a triplet has, n.
        images: N, the number of image features.
        device: Where the triplets are.
    """

    def __init__(self, table: pa.Table, count: int, images: int, device: torch.device) -> None:
        pools = table["pool"].combine_chunks().dictionary_encode()
        self._pools = pools.dictionary
        lists = table["neighbours"].combine_chunks()
        position_K = _number_within(lists.offsets.to_numpy())
        owner_K = lists.value_parent_indices().to_numpy()
        other_K = lists.flatten().to_numpy()
        unlike_K = table["similarities"].combine_chunks().flatten().to_numpy() < _EQUAL
        # The equal ones come first: the others move up by their number
        equal_Q = np.bincount(owner_K[~unlike_K], minlength=len(table))
        position_K = position_K - equal_Q[owner_K]
        used_K = unlike_K & (position_K < count)
        found_Qn = np.full((len(table) + 1, count), NONE, np.int64)  # the last one has none
        found_Qn[owner_K[used_K], position_K[used_K]] = other_K[used_K]
        pool_Q, image_Q = (
            codes.to_numpy().astype(np.int64)
            for codes in (pools.indices, table["image"].combine_chunks())
        )
        key_Q = np.append(pool_Q * images + image_Q, np.iinfo(np.int64).max)
        order_Q = np.argsort(key_Q, kind="stable")
        self._images = images
        self._key_Q, self._found_Qn = (
            torch.from_numpy(rows).to(device) for rows in (key_Q[order_Q], found_Qn[order_Q])
        )

    def pools(self, categories: pa.ChunkedArray) -> torch.Tensor:
        """Return the numbers (T,) of the pools of triplets by category, or of the only one."""
        if self._pools.to_pylist() == [""]:
            return torch.zeros(len(categories), dtype=torch.int64)
        number = pc.index_in(categories.cast(pa.string()), value_set=self._pools)
        return torch.from_numpy(number.fill_null(0).to_numpy().astype(np.int64))

    def mined(self, pool_B: torch.Tensor, target_B: torch.Tensor) -> torch.Tensor:
        """Return the rows (B, n) of the targets' nearest images, NONE where fewer were mined."""
        key_B = pool_B * self._images + target_B
        row_B = torch.searchsorted(self._key_Q, key_B)
        found_Bn = self._found_Qn[row_B]
        return found_Bn.masked_fill((self._key_Q[row_B] != key_B)[:, None], NONE)


def but(found_Bn: torch.Tensor, right_BT: torch.Tensor) -> torch.Tensor:
    """Return rows of images with NONE in the place of those that are right."""
    is_right_Bn = (found_Bn[:, :, None] == right_BT[:, None]).any(-1)
    return found_Bn.masked_fill(is_right_Bn, NONE)


def named(triplets: pa.Table) -> list[str]:
    """Return the images that triplets (schema TRIPLET) name as negatives, repeated ones too."""
    return [name for names in triplets["negatives"].to_pylist() for name in names or ()]


def own(triplets: pa.Table, rows: Mapping[str, int]) -> NDArray[np.int64] | None:
    """Return the rows (N, m) of the negatives that triplets name themselves; None: none does.

    NONE stands for those without a row, and where there are fewer.
    """
    named = [names or [] for names in triplets["negatives"].to_pylist()]
    if (most := max(map(len, named), default=0)) == 0:
        return None
    found_Nm = np.full((len(named), most), NONE, np.int64)
    for own_m, names in zip(found_Nm, named, strict=True):
        own_m[: len(names)] = [rows.get(name, NONE) for name in names]
    return found_Nm


def _number_within(offset_Q: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return the position (K,) of each value in its list, of lists by their offsets (Q + 1,)."""
    start_Q = (offset_Q - offset_Q[0]).astype(np.int64)
    position_K: NDArray[np.int64] = np.arange(start_Q[-1])
    position_K -= np.repeat(start_Q[:-1], np.diff(start_Q))
    return position_K
