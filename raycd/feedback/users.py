"""Simulated users: each has a target in mind, looks down the results, and clicks what is like it.

They are the position-based model's own (see `examination`): whether a position is looked at does
not depend on what stands above it.

Shapes: N images, A attributes, K results, P pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Habits:
    """What users look at, and what they click."""

    bias: float = 1.0
    """Position k, from 1, is looked at with the probability k ** -bias."""
    clicks: tuple[float, ...] = (0.9, 0.25, 0.08, 0.02)
    """Probability of a click on what is looked at, by the number of attributes in which it differs
    from what the user has in mind; the last one is for all that differs in more.
    """

    def looked_at(self, positions: int) -> NDArray[np.float64]:
        """Return the probability (K,) that a position is looked at."""
        seen_K: NDArray[np.float64] = np.arange(1, positions + 1, dtype=np.float64) ** -self.bias
        return seen_K

    def clicked(
        self, rng: np.random.Generator, differing_K: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Draw which results are clicked (K,), by the attributes in which each differs."""
        worth_K = np.array(self.clicks)[np.minimum(differing_K, len(self.clicks) - 1)]
        looked_K = rng.random(len(differing_K)) < self.looked_at(len(differing_K))
        chosen_K: NDArray[np.bool_] = looked_K & (rng.random(len(differing_K)) < worth_K)
        return chosen_K


def coded(attributes: Sequence[Mapping[str, str]]) -> NDArray[np.int64]:
    """Return the attributes of images as numbers (N, A); an absent one is a value, too."""
    names = sorted({name for own in attributes for name in own})
    columns = [
        np.unique([own.get(name, "") for own in attributes], return_inverse=True)[1]
        for name in names
    ]
    return np.array(columns, np.int64).reshape(len(names), len(attributes)).T


def pairs(
    code_NA: NDArray[np.int64], rng: np.random.Generator, *, most: int = 3
) -> NDArray[np.int64]:
    """Return all pairs (P, 2) of images that differ in one to `most` attributes, in drawn order.

    The first is what a user has before the eyes, the second what the user has in mind.
    """
    differing_NN = sum(
        (code_N[:, None] != code_N).astype(np.int8) for code_N in code_NA.T
    ) + np.zeros((len(code_NA),) * 2, np.int8)
    found_P2 = np.argwhere((differing_NN >= 1) & (differing_NN <= most))
    return rng.permutation(found_P2)
