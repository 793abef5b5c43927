"""Features by key (image id or text), and their Parquet tables of key, status and vector."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from raycd.data.missing import ImageReport

READABLE = "ok"  # the status of a row that has a feature; other rows have an images.Reason


@dataclass(frozen=True)
class Features:
    """Features by key: image ids or texts. `values` (N, D) are not normalised."""

    rows: Mapping[str, int]
    values: torch.Tensor

    @classmethod
    def of(cls, keys: Sequence[str], values: torch.Tensor) -> Features:
        """Return the features in which `values[i]` belongs to `keys[i]`."""
        assert len(keys) == len(values)
        return cls({key: row for row, key in enumerate(keys)}, values)

    def __contains__(self, key: str) -> bool:
        return key in self.rows

    def find(self, keys: pa.ChunkedArray) -> NDArray[np.int64]:
        """Return the row of each key, -1 where it has none."""
        found = pc.index_in(keys, value_set=pa.array(self.rows.keys(), pa.string()))
        rows: NDArray[np.int64] = np.fromiter([*self.rows.values(), -1], np.int64)[
            found.fill_null(-1).to_numpy()
        ]
        return rows

    def take(self, keys: Iterable[str], device: torch.device | str | None = None) -> torch.Tensor:
        """Return features (len(keys), D), on `device`."""
        rows = torch.tensor(
            [self.rows[key] for key in keys], dtype=torch.int64, device=self.values.device
        )
        return self.values[rows].to(device)


def to_table(keys: list[str], status: list[str], features_ND: NDArray[np.float32]) -> pa.Table:
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


def write(path: Path, table: pa.Table) -> None:
    """Write one Parquet file, uncompressed: features hardly compress."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="none", use_dictionary=False)


def read(path: Path, order: list[str] | None = None) -> tuple[Features, ImageReport]:
    """Return features of the readable rows, and a report of the others.

    The rows are in the order of the file, or of `order` as far as they are there.
    """
    table = pq.read_table(path)
    keys, status = table["key"].to_pylist(), table["status"].to_pylist()
    column = table["feature"].combine_chunks()
    vectors = np.asarray(column.flatten()).reshape(len(keys), column.type.list_size)
    rows = {
        key: row
        for row, (key, state) in enumerate(zip(keys, status, strict=True))
        if state == READABLE
    }
    broken = {key: state for key, state in zip(keys, status, strict=True) if state != READABLE}
    chosen = [key for key in (order if order is not None else rows) if key in rows]
    values = torch.from_numpy(np.ascontiguousarray(vectors[[rows[key] for key in chosen]]))
    return Features.of(chosen, values), ImageReport(broken)
