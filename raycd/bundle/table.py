"""The gallery of a bundle as a table: gallery.parquet, checked where it is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raycd.bundle.manifest import AGAIN, GALLERY
from raycd.data import moved
from raycd.errors import WeightsError
from raycd.gallery.static import ENCODER, SCHEMA

_FEATURE = "feature"
_ROWS = 5000  # of a part


def gallery_table(
    image_ids: Sequence[str],
    categories: Sequence[Sequence[str]],
    paths: Sequence[str | None],
    features_GD: NDArray[np.float32],
    fingerprint: str,
    *,
    attributes: Sequence[Mapping[str, str]] | None = None,
    run: str = "",
) -> pa.Table:
    """Build the table of searchable images.

    Features (G, D) are as the encoder of that fingerprint returns them, not normalised. `run` is
    the folder of the run, by which pictures are found after it has moved.
    """
    size, dim = features_GD.shape
    flat = pa.array(np.ascontiguousarray(features_GD, np.float32).reshape(-1))
    known = [image_ids, categories, paths, [list(one.items()) for one in attributes or [{}] * size]]
    columns = [pa.array(values, field.type) for values, field in zip(known, SCHEMA, strict=True)]
    features = pa.FixedSizeListArray.from_arrays(flat, dim)
    assert all(len(column) == size for column in columns)
    table = pa.table([*columns, features], names=[*SCHEMA.names, _FEATURE])
    return table.replace_schema_metadata({ENCODER: fingerprint.encode(), moved.RUN: run.encode()})


class TableFeatures:
    """The features (G, D) of a gallery table, in parts and without a copy of all."""

    def __init__(self, gallery: pa.Table) -> None:
        column = gallery[_FEATURE]
        self.shape = len(column), int(column.type.list_size)
        self._chunks = [_numbers(chunk) for chunk in column.chunks]
        self._starts = np.cumsum([0, *map(len, self._chunks)])

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        if isinstance(rows, slice):
            if len(self._chunks) == 1:
                return self._chunks[0][rows]
            rows = np.arange(self.shape[0])[rows]
        found_ND = np.empty((len(rows), self.shape[1]), np.float32)
        chunk_N = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(chunk_N).tolist():  # Arrow would join all chunks at each call
            own_N = chunk_N == number
            found_ND[own_N] = self._chunks[number][rows[own_N] - self._starts[number]]
        return found_ND


def gallery_features(gallery: pa.Table) -> NDArray[np.float32]:
    """Return the features (G, D) of a gallery table."""
    return _numbers(gallery[_FEATURE].combine_chunks())


def _numbers(column: pa.Array) -> NDArray[np.float32]:
    flat: NDArray[np.float32] = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), column.type.list_size)


def read_gallery(folder: Path) -> pa.Table:
    """Return the gallery table of a bundle with its features, which `load` leaves on disk.

    Raises WeightsError where it is damaged.
    """
    parts = list(gallery_parts(folder))
    return pa.Table.from_batches(parts, pq.read_schema(folder / GALLERY))


def categories(folder: Path) -> set[str]:
    """Return the categories of a bundle's images. Raises WeightsError where it is damaged."""
    with _reading(folder / GALLERY):
        lists = pq.read_table(folder / GALLERY, columns=["categories"])["categories"]
        return set(pc.unique(pc.list_flatten(lists)).to_pylist())


def gallery_parts(folder: Path) -> Iterator[pa.RecordBatch]:
    """Yield that table in parts: their features never lie in memory as a whole.

    Raises WeightsError where it is damaged, when it comes to that.
    """
    path = folder / GALLERY
    read_table(path)
    with _reading(path), pq.ParquetFile(path, memory_map=True) as file:
        _check_type(path, file.schema_arrow)
        for batch in file.iter_batches(_ROWS):
            _check_finite(path, batch)
            yield batch


def _check_type(path: Path, schema: pa.Schema) -> None:
    kind = schema.field(_FEATURE).type if _FEATURE in schema.names else pa.null()
    if not pa.types.is_fixed_size_list(kind) or kind.value_type != pa.float32():
        raise _damaged(path, f"features of type {kind}", "lists of float32, all of one size")


def _check_finite(path: Path, batch: pa.RecordBatch) -> None:
    column = batch[_FEATURE]
    numbers = column.flatten().to_numpy(zero_copy_only=False)
    if column.null_count or not np.isfinite(numbers).all():
        raise _damaged(path, "a feature that is absent or not finite", "finite numbers")


def read_table(path: Path) -> pa.Table:
    """Return the gallery's rows without their features, checked. Raises WeightsError."""
    with _reading(path):
        columns = [name for name in pq.read_schema(path).names if name != _FEATURE]
        table = pq.read_table(path, columns=columns)
        rows = table.select(SCHEMA.names).cast(SCHEMA)
        ids = rows["image_id"]
        texts = [pc.list_flatten(rows["categories"]), ids]
        if any(column.null_count for column in texts) or pc.count_distinct(ids).as_py() != len(ids):
            raise _damaged(
                path,
                "image ids or categories that are null, or ids that repeat",
                "one row an image",
            )
        if any(chunk.items.null_count for chunk in rows["attributes"].chunks):
            raise _damaged(path, "an attribute that is null", "a text, or no such attribute")
    return table


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what Arrow raises while it reads a table into a WeightsError."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError) as error:  # Arrow's too
        raise _damaged(
            path, f"{type(error).__name__}: {error}", f"Parquet of {', '.join(SCHEMA.names)}"
        ) from error


def _damaged(path: Path, got: str, expected: str) -> WeightsError:
    return WeightsError(
        f"{path} is damaged", got=" ".join(got.split())[:300], expected=expected, do=AGAIN
    )
