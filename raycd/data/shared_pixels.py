"""Rows of pixels in memory that processes of a machine share, filled by whoever decodes first.

On Linux it is an anonymous file, which other processes open through the one that made it; it has
no limit of its own, as /dev/shm has in containers. Elsewhere it is a temporary file. Memory is
taken row by row, as they are put.
"""

from __future__ import annotations

import os
import weakref
import zlib
from math import prod
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from numpy.typing import NDArray

from raycd import scratch


class SharedPixels:
    """`count` rows of pixels `shape` (H, W, 3) uint8, empty at first.

    A copy of it, unpickled in another process, is the same memory while the first process lives.
    """

    def __init__(self, count: int, shape: tuple[int, int, int]) -> None:
        self.count, self.shape, self.name = count, shape, f"raycd-pixels-{uuid4().hex}"
        if hasattr(os, "memfd_create"):
            file = os.memfd_create(self.name)
            weakref.finalize(self, os.close, file)
            self.path = f"/proc/{os.getpid()}/fd/{file}"
        else:
            self.path = str(scratch.new_folder() / self.name)
        self._open("w+")

    def _open(self, mode: Any) -> None:
        # A row is its checksum and its pixels: of what was written while another process reads, or
        # by one that was killed, the checksum is another
        kind = np.dtype([("sum", np.uint32), ("pixels", np.uint8, (prod(self.shape),))])
        self._rows: NDArray[Any] = np.memmap(self.path, kind, mode, shape=(max(self.count, 1),))

    def move(self, path: str, name: str) -> None:
        """Use the rows `name` of another process, where its `path` can be reached from this one.

        In another container it cannot, or another file is there.
        """
        before = self.path, self.name
        try:
            if name in (os.readlink(path) if os.path.islink(path) else path):
                self.path, self.name = path, name
                self._open("r+")
        except OSError:
            self.path, self.name = before

    def __getstate__(self) -> dict[str, Any]:
        names = ("count", "shape", "path", "name")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self.count:  # of none, the first process may be another machine's
            self._open("r+")

    def get(self, row: int) -> torch.Tensor | None:
        """Return the pixels (H, W, 3) of a row; None where it is not whole."""
        total = int(self._rows["sum"][row])
        if not total:
            return None
        pixels = self._rows["pixels"][row]
        return torch.from_numpy(pixels.reshape(self.shape)) if _sum(pixels) == total else None

    def put(self, row: int, pixels: torch.Tensor) -> None:
        """Fill a row."""
        flat = pixels.numpy().reshape(-1)
        self._rows["pixels"][row] = flat
        self._rows["sum"][row] = _sum(flat)


def _sum(pixels: NDArray[np.uint8]) -> int:
    return zlib.crc32(pixels.data) or 1
