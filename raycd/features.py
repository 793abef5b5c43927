"""Tables of features as Parquet: a key (image id or text), a status and a vector each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from raycd.data.missing import ImageReport
from raycd.evaluate import Features

READABLE = "ok"  # the status of a row that has a feature; otherwise it is images.Reason


def to_table(keys: list[str], status: list[str], features_ND: NDArray[np.float32]) -> pa.Table:
    """Rows (key, status, feature: fixed_size_list<float32>[D])."""
    flat = pa.array(np.ascontiguousarray(features_ND, dtype=np.float32).reshape(-1), pa.float32())
    feature = pa.FixedSizeListArray.from_arrays(flat, features_ND.shape[1])
    return pa.table({"key": pa.array(keys, pa.string()), "status": pa.array(status, pa.string()), "feature": feature})


def write(path: Path, table: pa.Table) -> None:
    """One Parquet file. Features hardly compress, so they are not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="none", use_dictionary=False)


def read(path: Path, order: list[str] | None = None) -> tuple[Features, ImageReport]:
    """Features of the readable rows (in `order`, as far as they are there), and what was not readable."""
    table = pq.read_table(path)
    keys, status = table["key"].to_pylist(), table["status"].to_pylist()
    column = table["feature"].combine_chunks()
    vectors = np.asarray(column.flatten()).reshape(len(keys), column.type.list_size)
    rows = {key: row for row, (key, state) in enumerate(zip(keys, status, strict=True)) if state == READABLE}
    broken = {key: state for key, state in zip(keys, status, strict=True) if state != READABLE}
    chosen = [key for key in (order if order is not None else rows) if key in rows]
    values = torch.from_numpy(np.ascontiguousarray(vectors[[rows[key] for key in chosen]]))
    return Features.of(chosen, values), ImageReport(broken)
