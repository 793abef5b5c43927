"""The half index: a query is compared with every image, two bytes a number, in a mapped file.

The file's pages are the system's cache, which drops them where memory is short: an image costs the
process next to nothing, and a search reads all of the file. The lists of `sq8` and `rabitq` order
what they find by the same rows.

A number of float16 differs from the feature's by at most 2^-11 of itself: so do scores and vectors.

Shapes: G images, N of them in a block or at some positions, D feature size, B queries.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from raycd.errors import WeightsError
from raycd.index import approximate, blocks
from raycd.index.structure import Found, Mask

_faiss: Any = faiss  # its types lack what is used here

# Up to so many queries FAISS compares each with all rows as they are; for more the rows become
# float32, a block at a time, and a product of matrices compares them
ONE_BY_ONE = 4
FEW = 10_000  # images of a mask that are read alone, not the whole file

Rows = NDArray[np.float16]


class Half:
    """FAISS's IndexScalarQuantizer of float16 numbers.

    Args:
        index: It.
        rows_GD: The memory that its numbers are in, where that is not its own.
    """

    def __init__(self, index: Any, rows_GD: Rows | None = None) -> None:
        self.index = index
        self.effort = 0
        self._rows_GD = _rows(index) if rows_GD is None else rows_GD

    @classmethod
    def build(cls, units: Iterable[NDArray[np.float32]], size: int, dim: int) -> Self:
        """Write all images in the blocks (N, D), in their order, into a file of the system's."""
        rows_GD = room((size, dim), np.float16)
        for _ in copied(units, rows_GD):
            pass
        return cls.over(rows_GD)

    @classmethod
    def over(cls, rows_GD: Rows) -> Self:
        """Return the index of rows (G, D) where they are."""
        index = empty(rows_GD.shape[1])
        if len(rows_GD):
            codes = index.codes
            index.codes = codes.create_view(
                faiss.swig_ptr(rows_GD.view(np.uint8).reshape(-1)), rows_GD.nbytes, codes.owner
            )
            index.ntotal = len(rows_GD)
        return cls(index, rows_GD)

    def search(self, query_BD: NDArray[np.float32], k: int, allowed_G: Mask | None = None) -> Found:
        """Return the same as `exact`: every search is exact."""
        return self.exact(query_BD, k, allowed_G)

    def exact(self, query_BD: NDArray[np.float32], k: int, allowed_G: Mask | None = None) -> Found:
        """Search as `Structure.exact` describes."""
        kept_N = None if allowed_G is None else np.flatnonzero(allowed_G)
        if len(query_BD) <= ONE_BY_ONE and (kept_N is None or len(kept_N) > FEW):
            params = None
            if allowed_G is not None:
                params = _faiss.SearchParameters(sel=approximate.selector(allowed_G))
            found: Found = self.index.search(query_BD, k, params=params)
            return found
        return blocks.nearest(query_BD, self._parts(kept_N), k)

    def _parts(
        self, kept_N: NDArray[np.int64] | None
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Yield positions and features of the kept images, or all, a block at a time."""
        count = len(self._rows_GD) if kept_N is None else len(kept_N)
        for start in range(0, count, blocks.SIZE):
            some = slice(start, start + blocks.SIZE)
            position_N = np.arange(start, min(count, some.stop)) if kept_N is None else kept_N[some]
            code_ND = self._rows_GD[some if kept_N is None else position_N].view(np.uint8)
            yield position_N, self.index.sa_decode(np.ascontiguousarray(code_ND))

    def vectors(self, positions_N: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return features as `Structure.vectors` describes, at length 1 after the rounding."""
        found_ND = self._rows_GD[positions_N].astype(np.float32)
        unit_ND: NDArray[np.float32] = found_ND / np.linalg.norm(found_ND, axis=1, keepdims=True)
        return unit_ND


def empty(dim: int) -> Any:
    """Return FAISS's index without images; those that are added are in its own memory."""
    return faiss.IndexScalarQuantizer(
        dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )


def room(shape: tuple[int, int], kind: type[np.float16 | np.float32]) -> NDArray[Any]:
    """Return an array in a temporary file of its own, which is gone with the array.

    It is in the folder that TMPDIR names. Where that is in memory (tmpfs), so is the array.

    Raises WeightsError where there is no room for it.
    """
    if 0 in shape:
        return np.empty(shape, kind)
    size = shape[0] * shape[1] * np.dtype(kind).itemsize
    try:
        with tempfile.TemporaryFile(prefix="raycd-") as file:
            # Now: a write into a mapped file for which the disk has no room ends the process
            os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, kind, "r+", shape=shape)
    except OSError as error:
        raise WeightsError(
            "there is no room for features in the folder of temporary files",
            got=f"{tempfile.gettempdir()}: {error.strerror}",
            expected=f"{size / 2**20:,.0f} MiB",
            do="make room there, or name another folder by TMPDIR",
        ) from error


def copied(units: Iterable[NDArray[np.float32]], rows_GD: Rows) -> Iterator[NDArray[np.float32]]:
    """Yield the blocks (N, D) when each is written into the rows, one after the other."""
    start = 0
    for unit_ND in units:
        rows_GD[start : start + len(unit_ND)] = unit_ND
        yield unit_ND
        start += len(unit_ND)
    assert start == len(rows_GD), f"{start} images, room for {len(rows_GD)}"


def _rows(index: Any) -> Rows:
    """Return the numbers of FAISS's index, where it has them."""
    shape = index.ntotal, index.d
    if not index.ntotal:
        return np.empty(shape, np.float16)
    bytes_: NDArray[np.uint8] = _faiss.rev_swig_ptr(index.codes.data(), 2 * index.ntotal * index.d)
    return bytes_.view(np.float16).reshape(shape)
