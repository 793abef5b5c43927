"""How hard an approximate index must search: as little as finds the true first 10 often enough, measured on a sample.

Shapes: Q queries of one sort, K their true neighbours, G images, D feature size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raycd.index.hnsw import Hnsw
from raycd.index.ivf import Ivf

FIRST = 10  # results whose recall is measured
_LEAST_EF = 16  # efSearch that is tried first


class Sort(NamedTuple):
    """Queries of one sort, and what they should find."""

    query_QD: NDArray[np.float32]
    truth_QK: NDArray[np.int64]


def between(unit_QD: NDArray[np.float32], *, seed: int = 0) -> NDArray[np.float32]:
    """Queries like composed ones, which lie between their reference and what the text asks for.

    Two parts of an image and one of another, drawn at random. Most texts ask for less, so these are harder to answer.
    """
    other_QD = unit_QD[np.random.default_rng([seed, 11]).permutation(len(unit_QD))]
    query_QD = 2 * unit_QD + other_QD
    unit: NDArray[np.float32] = query_QD / np.linalg.norm(query_QD, axis=1, keepdims=True)
    return unit


def choose(structure: Ivf | Hnsw, sorts: Mapping[str, Sort], wanted: float) -> float:
    """Set `structure.effort` so that each sort of queries has the recall that is wanted; returns the least of them."""
    if isinstance(structure, Ivf):
        return _choose_lists(structure, sorts, wanted)
    structure.effort = _LEAST_EF
    while (found := min(_recall(structure, sort) for sort in sorts.values())) < wanted:
        if structure.effort >= structure.index.ntotal:
            break
        structure.effort *= 2
    return found


def _choose_lists(ivf: Ivf, sorts: Mapping[str, Sort], wanted: float) -> float:
    """From the lists in which the neighbours are follows the recall of any number of visits: none has to be tried."""
    ranks = [ivf.ranks(*sort) for sort in sorts.values()]
    ivf.effort = max(int(np.quantile(rank_QK, wanted, method="inverted_cdf")) for rank_QK in ranks)
    return min(float((rank_QK <= ivf.effort).mean()) for rank_QK in ranks)


def _recall(hnsw: Hnsw, sort: Sort) -> float:
    _, found_QK = hnsw.search(sort.query_QD, sort.truth_QK.shape[1])
    hits = sum(len(np.intersect1d(found, truth)) for found, truth in zip(found_QK, sort.truth_QK, strict=True))
    return hits / sort.truth_QK.size
