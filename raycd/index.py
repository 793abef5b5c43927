"""The flat FAISS index: exact search by cosine over the gallery.

Saved bytes are read only after their SHA-256 is verified: a FAISS file that was tampered with can corrupt memory.
Shapes: G gallery images, B queries, D feature size.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from raycd.errors import WeightsError

KIND = "flat"


class FlatIndex:
    """Gallery features, L2-normalised, compared one by one. Positions are those of the features it was built from.

    `threads` are FAISS's in a search; 0 leaves them as they are. (They are set in each search, because OpenMP keeps
    the number for each calling thread.)
    """

    kind = KIND

    def __init__(self, index: Any, *, threads: int = 0) -> None:
        self._index = index
        self.threads = threads

    @classmethod
    def build(cls, features_GD: NDArray[np.float32], *, threads: int = 0) -> Self:
        """Index features (G, D) of any length. Raises WeightsError where one is zero or not finite."""
        features = np.asarray(features_GD, np.float32)
        lengths = np.linalg.norm(features, axis=1, keepdims=True)
        broken = ~np.isfinite(lengths[:, 0]) | (lengths[:, 0] == 0)
        if broken.any():
            raise WeightsError(
                f"{int(broken.sum())} of {len(features)} gallery features are zero or not finite",
                got=f"the first at position {int(broken.argmax())}",
                do="check the encoder's weights; where embed.precision is bf16, try fp32",
            )
        index = faiss.IndexFlatIP(features.shape[1])
        index.add(features / lengths)
        return cls(index, threads=threads)

    @property
    def size(self) -> int:
        """G, the images in it."""
        return int(self._index.ntotal)

    @property
    def dim(self) -> int:
        """D, the size of a feature."""
        return int(self._index.d)

    def search(self, query_BD: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """L2-normalised queries (B, D) -> cosines (B, k) and positions (B, k), best first; k is cut to `size`."""
        assert query_BD.shape[1] == self.dim, f"queries of {query_BD.shape[1]}, index of {self.dim}"
        if self.threads:
            faiss.omp_set_num_threads(self.threads)
        scores, positions = self._index.search(np.ascontiguousarray(query_BD, np.float32), min(k, self.size))
        return scores, positions

    def save(self, path: Path) -> str:
        """Write the index to `path`; returns the file's SHA-256, which `load` asks for."""
        data = faiss.serialize_index(self._index).tobytes()
        path.write_bytes(data)
        return hashlib.sha256(data).hexdigest()

    @classmethod
    def load(cls, path: Path, sha256: str, *, threads: int = 0) -> Self:
        """Read what `save` wrote. Raises WeightsError where it is absent, of another hash or no flat index."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise WeightsError(
                f"the index {path} cannot be read",
                got=f"{type(error).__name__}: {error.strerror}",
                do="build the index again",
            ) from error
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            raise WeightsError(
                f"the index {path} is not the file that was saved",
                got=f"SHA-256 {found}",
                expected=sha256,
                do="build the index again",
            )
        index = faiss.deserialize_index(np.frombuffer(data, np.uint8))
        if not isinstance(index, faiss.IndexFlatIP):
            raise WeightsError(f"{path} holds no flat index", got=type(index).__name__, expected="IndexFlatIP")
        return cls(index, threads=threads)
