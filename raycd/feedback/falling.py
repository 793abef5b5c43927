"""Propensities that fall from position to position, the best being 1."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression


def falling(found_K: NDArray[np.float64], clicks_K: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return propensities (K,), all above 0, as they fall, divided by the first.

    Few clicks would often say that a later position is looked at more than one before it: where
    they do, both get the mean (isotonic regression of the logarithms, weighted by clicks). So the
    first is the best, and one that was hardly clicked does not say how much the others count.
    """
    fitted = isotonic_regression(np.log(found_K), weights=clicks_K, increasing=False)
    falling_K: NDArray[np.float64] = np.exp(fitted.x - fitted.x[0])
    return falling_K
