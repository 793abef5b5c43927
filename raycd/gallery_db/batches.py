"""Batches of an import: every id, label and feature of a source, checked.

Shapes: N images, D feature size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raycd.errors import DataError, brief
from raycd.gallery.records import USABLE_ID, is_usable_id
from raycd.gallery.static import SCHEMA
from raycd.gallery_db.sources import FEATURE, Source

if TYPE_CHECKING:
    from raycd.data.catalogue import Labels

SIZE = 5000  # images of a transaction, about: other writers wait that long
NAME = 512  # characters of a category, an attribute's name or value, as over HTTP
SHOWN = 5

Item = TypeVar("Item")


def batches(source: Source, categories: Iterable[str] = ()) -> Iterator[pa.RecordBatch]:
    """Yield the images of a source in their order, of `gallery.static.SCHEMA` and feature (N, D).

    SIZE to twice as many at a time, the last ones fewer.

    Args:
        source: Where they are.
        categories: Of images that have none.

    Raises:
        DataError: An id cannot be one, a label is too long, or a feature is absent, of another size
            than the first, not finite or only zeros.
    """
    waiting, count = list[pa.Table](), 0
    for where, block in source.blocks():
        for start in range(0, len(block), SIZE):  # a block may be a whole .tar file
            part = block.slice(start, SIZE)
            waiting.append(_checked(where, part, source.dim, list(categories)))
            count += len(part)
            if count >= SIZE:
                yield _joined(waiting)
                waiting, count = [], 0
    if count:
        yield _joined(waiting)


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yield items, each of which is made while the one before is worked on."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, items, None)
        while (item := following.result()) is not None:
            following = thread.submit(next, items, None)
            yield item


def check_once(image_ids: Iterable[pa.Array]) -> None:
    """Raise DataError where an id repeats: nobody knows which of its rows counts."""
    every = pa.chunked_array(image_ids, pa.string())
    if pc.count_distinct(every).as_py() == len(every):
        return
    counted = pc.value_counts(every)
    twice = counted.filter(pc.greater(counted.field("counts"), 1)).field("values")
    raise DataError(
        f"{len(twice):,} image ids are there more than once",
        got=_some(twice),
        expected="one row an image; its categories are a list",
        do="leave one row of each",
    )


def _joined(tables: list[pa.Table]) -> pa.RecordBatch:
    return pa.concat_tables(tables).combine_chunks().to_batches()[0]


def _checked(where: str, block: pa.Table, dim: int, categories: list[str]) -> pa.Table:
    block = block.combine_chunks()  # copied: of a part, `keys` would be those of the whole block
    columns = {name: _cast(where, block[name], name) for name in SCHEMA.names}
    image_ids = columns["image_id"]
    bad = [one for one in image_ids.to_pylist() if one is None or not is_usable_id(one)]
    if bad:
        raise DataError(
            f"{where} has {len(bad):,} image ids that cannot be one",
            got=_some(bad),
            expected=USABLE_ID,
        )
    labels = pc.list_flatten(columns["categories"])
    pairs = columns["attributes"]
    for what, texts in (
        ("categories", labels),
        ("attributes", pairs.keys),
        ("attributes", pairs.items),
    ):
        _check_texts(where, what, texts)
    if categories:
        rows = [one or categories for one in columns["categories"].to_pylist()]
        columns["categories"] = pa.array(rows, SCHEMA.field("categories").type)
    feature_ND = _features(where, block[FEATURE].combine_chunks(), image_ids, dim)
    flat = pa.array(feature_ND.reshape(-1), pa.float32())
    return pa.table({**columns, FEATURE: pa.FixedSizeListArray.from_arrays(flat, dim)})


def _cast(where: str, column: pa.ChunkedArray, name: str) -> pa.Array:
    kind, array = SCHEMA.field(name).type, column.combine_chunks()
    try:
        if pa.types.is_struct(array.type):
            texts = pa.struct([(field.name, pa.string()) for field in array.type])
            rows = array.cast(texts).to_pylist()
            return pa.array([one and [(k, v) for k, v in one.items() if v] for one in rows], kind)
        return array.cast(kind)
    except pa.ArrowException as error:
        raise DataError(
            f"{where} has a column {name} that cannot be texts", got=brief(error), expected=kind
        ) from error


def fitting(labels: Mapping[str, Labels]) -> tuple[dict[str, Labels], int]:
    """Return labels with the attributes that can be filtered by, and how many others there were.

    A description is a text to read: no gallery keeps it.
    """
    found: dict[str, Labels] = {}
    long = 0
    for image_id, own in labels.items():
        stripped = {name.strip(): value.strip() for name, value in own.attributes.items()}
        kept = {
            name: value
            for name, value in stripped.items()
            if 0 < len(name) <= NAME and 0 < len(value) <= NAME
        }
        long += sum(len(value) > NAME for value in stripped.values())
        found[image_id] = own._replace(attributes=kept)
    return found, long


def _check_texts(where: str, what: str, texts: pa.Array) -> None:
    wrong = [
        one
        for one in pc.unique(texts).to_pylist()
        if one is None or not 0 < len(one) <= NAME or one != one.strip()
    ]
    if wrong:
        raise DataError(
            f"{where} has {what} that cannot be one",
            got=_some(wrong),
            expected=f"1 to {NAME} characters without spaces around them",
            do="leave them out",
        )


def _features(where: str, column: pa.Array, image_ids: pa.Array, dim: int) -> NDArray[np.float32]:
    """Return the features (N, D) of images. Raises DataError."""

    def check(good_N: NDArray[np.bool_], got: str) -> None:
        if not good_N.all():
            bad = image_ids.filter(pa.array(~good_N))
            raise DataError(
                f"{where} has {len(bad):,} images whose features cannot be one",
                got=f"{got}: {_some(bad)}",
                expected=f"{dim} finite numbers, not all 0",
                do="encode them again, or leave them out",
            )

    size_N = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    check(size_N == dim, "none, or one of another size")
    with np.errstate(over="ignore", invalid="ignore"):
        flat = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
        feature_ND: NDArray[np.float32] = flat.reshape(len(column), dim)
        square_N = np.einsum("nd,nd->n", feature_ND, feature_ND)
    check(np.isfinite(square_N), "numbers that are not finite in float32, or whose length is not")
    check(square_N > 0, "only zeros")
    return feature_ND


def _some(values: Iterable[object]) -> str:
    shown = [one.as_py() if isinstance(one, pa.Scalar) else one for one in values]
    rest = f" and {len(shown) - SHOWN:,} more" if len(shown) > SHOWN else ""
    return ", ".join("null" if one is None else repr(one)[:80] for one in shown[:SHOWN]) + rest
