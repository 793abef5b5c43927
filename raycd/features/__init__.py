"""Features by key (image id or text), and their tables of key, status and vector.

How they lie on disk: `shards` (writing) and `stored` (reading).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

READABLE = "ok"  # the status of a row that has a feature; other rows have an images.Reason


@dataclass(frozen=True)
class Features:
    """Features by key: image ids or texts. `values` (N, D) are not normalised.

    Keys are looked up by Arrow, many at a time: there is no Python object for each of them.
    """

    keys: pa.StringArray
    values: torch.Tensor

    @classmethod
    def of(cls, keys: Sequence[str] | pa.Array, values: torch.Tensor) -> Self:
        """Return the features in which `values[i]` belongs to `keys[i]`."""
        assert len(keys) == len(values)
        own = keys if isinstance(keys, pa.Array) else pa.array(list(keys), pa.string())
        return cls(own, values)

    @classmethod
    def of_table(cls, table: pa.Table) -> Self:
        """Return the features of the readable rows of a `to_table`."""
        own = readable(table)
        return cls.of(own["key"].combine_chunks(), torch.from_numpy(vectors(own).copy()))

    def find(self, keys: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
        """Return the row of each key, -1 where it has none."""
        found = pc.index_in(keys, value_set=self.keys).fill_null(-1)
        rows: NDArray[np.int64] = found.to_numpy(zero_copy_only=False).astype(np.int64)
        return rows

    def among(self, keys: Iterable[str]) -> dict[str, int]:
        """Return the row of each of these keys that has a feature, in their order."""
        asked = list(dict.fromkeys(keys))
        rows = self.find(pa.array(asked, pa.string())).tolist()
        return {key: row for key, row in zip(asked, rows, strict=True) if row >= 0}

    def take(self, keys: Iterable[str], device: torch.device | str | None = None) -> torch.Tensor:
        """Return features (len(keys), D), on `device`. Raises KeyError where a key has none."""
        asked = pa.array(list(keys), pa.string())
        rows = self.find(asked)
        if len(lost := np.flatnonzero(rows < 0)):
            raise KeyError(asked[int(lost[0])].as_py())
        return self.values[torch.from_numpy(rows).to(self.values.device)].to(device)

    def to(self, device: torch.device | str) -> Features:
        """Return the same on `device`."""
        return Features(self.keys, self.values.to(device))


def to_table(
    keys: Sequence[str], status: Sequence[str], features_ND: NDArray[np.float32]
) -> pa.Table:
    """Return rows (key, status, feature: fixed_size_list<float32>[D])."""
    flat = pa.array(np.ascontiguousarray(features_ND, dtype=np.float32).reshape(-1), pa.float32())
    feature = pa.FixedSizeListArray.from_arrays(flat, features_ND.shape[1])
    return pa.table(
        {
            "key": pa.array(keys, pa.string()),
            "status": pa.array(status, pa.string()),
            "feature": feature,
        }
    )


def readable(table: pa.Table) -> pa.Table:
    """Return the rows that have a feature; the table itself where all have one."""
    mask = pc.equal(table["status"], READABLE)
    return table if pc.all(mask).as_py() is not False else table.filter(mask)


def vectors(table: pa.Table) -> NDArray[np.float32]:
    """Return the features (N, D) of a table; nothing is copied where it is one block."""
    column = table["feature"].combine_chunks()
    flat: NDArray[np.float32] = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), column.type.list_size)
