"""The index of a served gallery: which images are nearest to a query, by cosine.

    index = Index.build(features, config.index)
    scores, positions = index.search(queries, 10)

A position is that of a feature the index was built from. An index does not change once it is built.
flat, ivf and hnsw hold float32; half, sq8 and rabitq compare by numbers of float16, which are in a
mapped file.
Shapes: G gallery images, B queries, N images at some positions, D feature size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from pathlib import Path
from typing import Any, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from raycd.config import IndexConfig
from raycd.config.fields import IndexKind
from raycd.index import approximate, blocks, effort, files
from raycd.index.blocks import FeatureRows, Moments
from raycd.index.choice import kind_for
from raycd.index.files import IndexFacts
from raycd.index.flat import Flat
from raycd.index.half import Half
from raycd.index.hnsw import Hnsw
from raycd.index.ivf import Ivf
from raycd.index.rabitq import Rabitq
from raycd.index.sq8 import Sq8
from raycd.index.structure import FIRST, Found, Mask, Structure, found_in

# Another index's centres are taken where the numbers of lists differ by at most this factor. Lists
# grow with the root of the images: 1.4 is the root of 2, an index of half or twice as many images.
ALIKE = 1.4
WORSE = 0.001  # recall that another index's centres may cost
_LISTS: dict[IndexKind, type[Ivf]] = {"ivf": Ivf, "sq8": Sq8, "rabitq": Rabitq}
_EXACT: dict[IndexKind, type[Flat] | type[Half]] = {"flat": Flat, "half": Half}
_KINDS: dict[IndexKind, Callable[[Any], Structure]] = {**_EXACT, **_LISTS, "hnsw": Hnsw}


class Index:
    """Gallery features in one of the structures, with its measured recall.

    Attributes:
        kind: flat, half, ivf, hnsw, sq8 or rabitq.
        threads: FAISS's threads in a search; 0 leaves them unchanged. They are set in each search,
            because OpenMP keeps the number for each calling thread.
    """

    def __init__(
        self,
        structure: Structure,
        lengths_G: NDArray[np.float32],
        moments: Moments,
        recall: float,
        *,
        threads: int = 0,
    ) -> None:
        self.kind: IndexKind = next(
            name for name, kind in _KINDS.items() if type(structure) is kind
        )
        self._measured, self.threads = recall, threads
        self._structure, self._lengths_G, self._moments = structure, lengths_G, moments
        self._searched: Structure = structure

    @classmethod
    def build(
        cls,
        features_GD: FeatureRows,
        settings: IndexConfig,
        *,
        queries: Mapping[str, NDArray[np.float32]] | None = None,
        threads: int = 0,
        seed: int = 0,
        like: Self | None = None,
    ) -> Self:
        """Index features (G, D) of any length, which are read in blocks, several times.

        Beside the index itself that takes the memory of the images that place the centres:
        `ivf_train` a list. What half, sq8 and rabitq map is written into a temporary file, until
        what `save` wrote is loaded.

        Args:
            queries: Real queries (Q, D), L2-normalised, by their sort. Each sort must reach
                `settings.recall`. Without any, images of the gallery and queries between two of
                them replace them.
            like: An index of about as many images of the same kind, whose centres are taken if they
                do (IVF): training new ones takes most of the time.
        Raises:
            WeightsError: A feature is zero or not finite.
        """
        if threads:
            faiss.omp_set_num_threads(threads)
        lengths_G = blocks.lengths(features_GD)
        moments = blocks.moments(features_GD, lengths_G)
        structure = _structure(features_GD, lengths_G, settings, seed, like)
        recall = 1.0
        if not isinstance(structure, Flat | Half):
            sorts = _sorts(features_GD, lengths_G, queries, settings, seed, structure)
            recall = effort.choose(structure, sorts, settings.recall)
            if like is not None and recall < min(settings.recall, like._measured) - WORSE:
                return cls.build(features_GD, settings, queries=queries, threads=threads, seed=seed)
        return cls(structure, lengths_G, moments, recall, threads=threads)

    def on(self, device: str) -> Self:
        """Return an index of the same structure that searches on a device of torch, exactly.

        For "cpu" that is this one.

        Raises torch.OutOfMemoryError where the device has no room for the features in float32.
        """
        if device == "cpu":
            return self
        from raycd.index.on_gpu import OnGpu  # torch takes seconds; who starts a service needs none

        found = copy(self)
        found._searched = OnGpu(self._structure, device)
        return found

    @property
    def recall(self) -> float:
        """Return the share of the true first 10 that a search finds.

        It was measured when the index was built; 1 where every search is exact.
        """
        return self._measured if self._searched is self._structure else 1.0

    @property
    def size(self) -> int:
        """Return G, the number of images."""
        return int(self._structure.index.ntotal)

    @property
    def dim(self) -> int:
        """Return D, the size of a feature."""
        return int(self._structure.index.d)

    @property
    def effort(self) -> int:
        """Return the search effort: nprobe of lists, efSearch of HNSW, 0 of flat and half."""
        return self._structure.effort

    def search(
        self,
        query_BD: NDArray[np.float32],
        k: int,
        *,
        exact: bool = False,
        allowed: Mask | None = None,
    ) -> Found:
        """Return cosines (B, k) and positions (B, k) of L2-normalised queries (B, D).

        They are sorted by falling cosine, then by position.

        Args:
            k: Cut to `size`. Where fewer images are allowed, the last positions are -1 and their
                scores -inf.
            exact: Compare with every image.
            allowed: (G,), the images that may be found; None: all.
        """
        assert query_BD.shape[1] == self.dim, f"queries of {query_BD.shape[1]}, index of {self.dim}"
        if self.threads:
            faiss.omp_set_num_threads(self.threads)
        query_BD, k = np.ascontiguousarray(query_BD, np.float32), min(k, self.size)
        return found_in(self._searched, query_BD, k, exact=exact, allowed=allowed)

    def empty_lists(self) -> Ivf | None:
        """Return empty lists with this index's centres, for later images; None without lists."""
        return self._structure.like() if isinstance(self._structure, Ivf) else None

    @property
    def has_lists(self) -> bool:
        """Return whether it is one of those with lists: ivf, sq8, rabitq."""
        return isinstance(self._structure, Ivf)

    def vectors(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return L2-normalised features (N, D) of the images at positions (N,).

        They are exact to float32's rounding where the kind is flat, ivf or hnsw, to float16's in
        half, sq8 and rabitq: each number to 2^-10 of itself.
        """
        return self._structure.vectors(np.asarray(positions, np.int64))

    def lengths(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the original lengths (N,) of the features at positions (N,)."""
        found: NDArray[np.float32] = self._lengths_G[positions]
        return found

    def moments(self) -> Moments:
        """Return mean and covariance of the normalised features."""
        return self._moments

    def save(self, folder: Path) -> dict[str, str]:
        """Write FILES into a folder and return the SHA-256 of each by name, for `load`."""
        arrays = {
            "lengths": self._lengths_G,
            "mean": self._moments.mean_D,
            "covariance": self._moments.covariance_DD,
        }
        facts = IndexFacts(self.kind, self.effort, self._measured)
        return files.save(folder, self._structure.index, arrays, facts)

    @classmethod
    def load(cls, folder: Path, sha256: Mapping[str, str], *, threads: int = 0) -> Self:
        """Map what `save` wrote into memory.

        Raises WeightsError where a file is absent, damaged or of another hash.
        """
        index, arrays, facts = files.load(folder, sha256)
        with files.reading(folder):
            structure = {str(name): kind for name, kind in _KINDS.items()}[facts.kind](index)
            structure.effort = facts.effort
            lengths_G, moments = arrays["lengths"], Moments(arrays["mean"], arrays["covariance"])
            size, dim = index.ntotal, index.d
            found = lengths_G.shape, moments.mean_D.shape, moments.covariance_DD.shape
            if found != ((size,), (dim,), (dim, dim)):
                raise ValueError(f"{size} features of {dim}, but numbers of shape {found}")
        return cls(structure, lengths_G, moments, facts.recall, threads=threads)


def _structure(
    features_GD: FeatureRows,
    lengths_G: NDArray[np.float32],
    settings: IndexConfig,
    seed: int,
    like: Index | None,
) -> Structure:
    """Build the structure that the settings ask for, or that so many images need."""
    size, dim = features_GD.shape
    kind = kind_for(settings, size, dim, None if like is None else like.kind)
    units = (unit_ND for _, unit_ND in blocks.unit_blocks(features_GD, lengths_G))
    if kind == "flat":
        return Flat.build(units, dim)
    if kind == "half":
        return Half.build(units, size, dim)
    if kind == "hnsw":
        return Hnsw.build(units, dim, settings)
    lists = approximate.lists(size, settings.ivf_lists)
    known = None if like is None else like._structure
    if (
        isinstance(known, Ivf)
        and type(known) is _LISTS[kind]
        and 1 / ALIKE <= lists / known.lists <= ALIKE
    ):
        return known.like().filled(units, size)
    # ivf_train images a list: k-means over the whole gallery would take most of the build
    rows = np.sort(np.random.default_rng([seed, 9]).permutation(size)[: lists * settings.ivf_train])
    sample_ND = blocks.unit(features_GD, lengths_G, rows)
    return _LISTS[kind].trained(sample_ND, lists, settings).filled(units, size)


def _sorts(
    features_GD: FeatureRows,
    lengths_G: NDArray[np.float32],
    queries: Mapping[str, NDArray[np.float32]] | None,
    settings: IndexConfig,
    seed: int,
    structure: Structure,
) -> dict[str, effort.Sort]:
    """Return the queries on which recall is measured, with their true first results."""
    if queries is None:
        rows = np.random.default_rng([seed, 10]).permutation(len(lengths_G))[: settings.sample]
        unit_QD = blocks.unit(features_GD, lengths_G, rows)
        queries = {"image": unit_QD, "between": effort.between(unit_QD, seed=seed)}
    k = min(FIRST, len(lengths_G))
    return {
        sort: effort.Sort(query_QD, *structure.exact(query_QD, k))
        for sort, query_QD in queries.items()
    }
