"""The thresholds as cosines: as configured, or as quantiles of a data set's own similarities.

A cosine means something else with every encoder. A share does not: "the nearer half of the
neighbours" is the same wish whether an encoder's cosines are between 0.95 and 1 or between 0.4 and
0.9.
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raycd.config import MineConfig
from raycd.mine.search import DECIMALS


class Thresholds(TypedDict):
    """What `filter_candidates` filters by; all but s_max are cosines."""

    eps_low: float
    eps_high: float
    s_max: int
    alpha: float


def resolve(candidates: pa.Table, mine: MineConfig) -> Thresholds:
    """Return the thresholds of `mine`, measured on table CANDIDATES where they are quantiles.

    A quantile is a value that the table holds: at least that share of the candidates is at or below
    it. eps_low and eps_high are quantiles of the similarities, alpha is one of the scores. For an
    empty table all are the floor.
    """
    eps_low, eps_high, alpha = mine.eps_low, mine.eps_high, mine.alpha
    if mine.thresholds == "quantile":
        eps_low, eps_high = _quantiles(candidates["similarity"], (eps_low, eps_high), mine.floor)
        [alpha] = _quantiles(candidates["score"].drop_null(), (alpha,), mine.floor)
    return {"eps_low": eps_low, "eps_high": eps_high, "s_max": mine.s_max, "alpha": alpha}


def line(mine: MineConfig, found: Thresholds) -> str:
    """Return a line that says which cosines the quantiles are."""
    return (
        f"thresholds as quantiles: mine.eps_low {mine.eps_low:g} is similarity "
        f"{found['eps_low']:g}, mine.eps_high {mine.eps_high:g} is {found['eps_high']:g}, "
        f"mine.alpha {mine.alpha:g} is score {found['alpha']:g}"
    )


def _quantiles(column: pa.ChunkedArray, shares: tuple[float, ...], empty: float) -> list[float]:
    values: NDArray[np.float64] = column.to_numpy()
    if len(values) == 0:
        return [empty for _ in shares]
    found = np.round(np.quantile(values, shares, method="inverted_cdf"), DECIMALS)
    return [float(value) for value in found]
