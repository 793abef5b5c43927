"""The search effort of an approximate index: the least that finds the true first 10 often enough.

It is nprobe (IVF) or efSearch (HNSW), measured on a sample; with RaBitQ also how many candidates
are compared again. Shapes: Q queries of one sort, K their
true neighbours, G images, D feature size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raycd.index.ivf import AGAIN, Ivf
from raycd.index.rabitq import MOST, Rabitq
from raycd.index.structure import Structure

# Cosines of one image differ by about 2e-7 between batches; those within this count as equal
ROUNDING = 1e-6
_LEAST_EF = 16  # efSearch that is tried first


class Sort(NamedTuple):
    """Queries of one sort, and what they should find."""

    query_QD: NDArray[np.float32]
    score_QK: NDArray[np.float32]
    position_QK: NDArray[np.int64]


def between(unit_QD: NDArray[np.float32], *, seed: int = 0) -> NDArray[np.float32]:
    """Return queries like composed ones, between their reference and what the text asks for.

    They are two parts of an image and one of another, drawn at random. Most texts ask for less, so
    these are harder to answer.
    """
    other_QD = unit_QD[np.random.default_rng([seed, 11]).permutation(len(unit_QD))]
    query_QD = 2 * unit_QD + other_QD
    unit: NDArray[np.float32] = query_QD / np.linalg.norm(query_QD, axis=1, keepdims=True)
    return unit


def recall(found_QK: NDArray[np.float32], true_QK: NDArray[np.float32]) -> float:
    """Return the share of the true first K that was found, by cosine: equal images count alike."""
    return float((found_QK >= true_QK.min(axis=1, keepdims=True) - ROUNDING).mean())


def choose(structure: Structure, sorts: Mapping[str, Sort], wanted: float) -> float:
    """Set `structure.effort` so that each sort has the wanted recall; return the least recall."""
    if isinstance(structure, Ivf):
        # A neighbour is found if its list is visited: the quantile of the ranks of these lists is
        # the nprobe that is needed, and no search has to be tried
        ranks = [structure.ranks(sort.query_QD, sort.position_QK) for sort in sorts.values()]
        # Half of what may be missed is left to the codes, where they are as coarse as RaBitQ's
        visited = (1 + wanted) / 2 if isinstance(structure, Rabitq) else wanted
        structure.effort = max(
            int(np.quantile(rank_QK, visited, method="inverted_cdf")) for rank_QK in ranks
        )
        return _compared_enough(structure, sorts, wanted)
    structure.effort = _LEAST_EF
    while (
        found := _least(structure, sorts)
    ) < wanted and structure.effort < structure.index.ntotal:
        structure.effort *= 2
    return found


def _compared_enough(structure: Ivf, sorts: Mapping[str, Sort], wanted: float) -> float:
    if not isinstance(structure, Rabitq):
        return _least(structure, sorts)
    structure.again = AGAIN
    while (found := _least(structure, sorts)) < wanted and structure.again < MOST:
        structure.again *= 2
    return found


def _least(structure: Structure, sorts: Mapping[str, Sort]) -> float:
    return min(_recall(structure, sort) for sort in sorts.values())


def _recall(structure: Structure, sort: Sort) -> float:
    found_QK, _ = structure.search(sort.query_QD, sort.score_QK.shape[1])
    return recall(found_QK, sort.score_QK)
