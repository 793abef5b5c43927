"""Statistics of a comparison: how far seeds spread, and paired differences with their error.

A method is trained with S seeds and asked the same Q queries each time, so what it does is an array
`hits_SQ`: 1 where the target was found, else 0. Seeds and queries are crossed, not nested: each
query meets each seed. Two methods are paired in both: the difference of their arrays, cell by cell,
is one array of S x Q, and its mean is what is tested.

Shapes: S seeds, Q queries, B resamples, C categories.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

Floats = NDArray[np.float64]

RESAMPLES = 3_000  # the error is then known to 1.3%; 6,000 queries take 70 MB
LEVEL = 0.95
_TOGETHER = 256  # resamples that are drawn at once
_ROUNDING = 1e-9  # below it, means of hits are equal
_LEAST = 5  # queries that show how they spread: two or three often agree by chance


@dataclass(frozen=True)
class Spread:
    """Mean of one method over seeds."""

    mean: float
    sd: float | None
    """Standard deviation over seeds (n - 1); None for one seed."""
    low: float | None
    """Ends of the 95% interval of the mean over seeds, Student's t of n - 1 degrees of freedom."""
    high: float | None
    """Both None where seeds do not differ: they have not shown how far they spread."""


@dataclass(frozen=True)
class Difference:
    """Mean difference of two methods, paired by seed and query."""

    mean: float
    low: float | None
    """Ends of its 95% interval over seeds and queries; None where there is no error to estimate."""
    high: float | None
    p: float | None
    """Two-sided probability of so large a difference between equals, not corrected."""


def over_seeds(values: Sequence[float]) -> Spread:
    """Return mean, standard deviation and 95% interval of one number a seed."""
    count, mean = len(values), math.fsum(values) / len(values)
    if count < 2:
        return Spread(mean, None, None, None)
    sd = float(np.std(values, ddof=1))
    if sd <= _ROUNDING:
        return Spread(mean, 0.0, None, None)
    margin = _quantile(count - 1) * sd / math.sqrt(count)
    return Spread(mean, sd, mean - margin, mean + margin)


def weights(categories: Sequence[str]) -> Floats:
    """Return the weight of each query (Q,) in the unweighted mean over categories; they sum to 1.

    `categories` names each query's category.
    """
    _, category_Q, count_C = np.unique(
        np.asarray(categories), return_inverse=True, return_counts=True
    )
    share: Floats = 1 / (count_C[category_Q] * len(count_C))
    return share


def difference(
    baseline_SQ: ArrayLike,
    other_SQ: ArrayLike,
    categories: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Difference:
    """Return `other` - `baseline`: the mean over categories of their hits' differences.

    The standard error is that of a two-way bootstrap, Owen's pigeonhole bootstrap (2007): seeds
    and, within each category, queries are drawn with replacement, independently of each other, so
    that both sources of chance are in it. One seed fewer than there are is drawn, which makes the
    variance over few seeds unbiased (Rao and Wu 1988). Such a bootstrap counts the noise of single
    answers three times; two of them are taken off. Interval and p are Student's t, whose degrees of
    freedom (Satterthwaite 1946) lie between those of the seeds, where they dominate, and those of
    the queries.

    Args:
        baseline_SQ, other_SQ: Hits of the same seeds and queries, in the same order. With one seed
            or where the two never differ there is no interval.
        categories: Each query's category (Q,).
        seed: Decides what is drawn.
    """
    delta_SQ = np.asarray(other_SQ, np.float64) - np.asarray(baseline_SQ, np.float64)
    weight_Q, (seeds, queries) = weights(categories), delta_SQ.shape
    assert len(weight_Q) == queries
    share_SQ = delta_SQ * weight_Q  # of the mean over categories
    mean = float(share_SQ.sum(axis=1).mean())
    if seeds < 2:
        return Difference(mean, None, None, None)
    strata = _strata(categories)
    parts = _Parts.of(share_SQ, strata)
    if max(parts.seeds, parts.queries) <= _ROUNDING**2:
        return Difference(mean, None, None, None)
    drawn = float(np.var(_bootstrap(share_SQ, strata, seed, resamples), ddof=1))
    # What is left is never less than what seeds or queries alone make of it.
    error = math.sqrt(max(drawn - 2 * parts.noise, parts.seeds, parts.queries))
    degrees = parts.degrees_of_freedom()
    margin = _quantile(degrees) * error
    p = 2 * float(student.sf(abs(mean) / error, degrees))
    return Difference(mean, mean - margin, mean + margin, p)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p values corrected for their number (Holm 1979), in their order; None stays None.

    The least of n is multiplied by n, the next by n - 1 and so on; none falls below one before it.
    """
    tested = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    greatest = 0.0
    for rank, (p, index) in enumerate(tested):
        greatest = max(greatest, min(1.0, (len(tested) - rank) * p))
        corrected[index] = greatest
    return corrected


def _quantile(degrees: float) -> float:
    return float(student.ppf((1 + LEVEL) / 2, degrees))


def _strata(categories: Sequence[str]) -> list[NDArray[np.int64]]:
    """Return the positions of each category's queries.

    Those of fewer queries than show how they spread are one stratum together, or of the smallest
    other where they are too few even then (collapsed strata, Cochran 1977, 5A.12): it spreads
    rather too much than too little then.
    """
    names = np.asarray(categories)
    groups = [np.flatnonzero(names == name) for name in dict.fromkeys(categories)]
    strata = [group for group in groups if len(group) >= _LEAST]
    if few := [group for group in groups if len(group) < _LEAST]:
        together = np.concatenate(few)
        if strata and len(together) < _LEAST:
            smallest = min(range(len(strata)), key=lambda at: len(strata[at]))
            strata[smallest] = np.concatenate([strata[smallest], together])
        else:
            strata.append(together)
    return strata


def _bootstrap(
    share_SQ: Floats, strata: Sequence[NDArray[np.int64]], seed: int, resamples: int
) -> Floats:
    """Return the sums (B,) of shares whose seeds and queries were drawn anew."""
    seeds = len(share_SQ)
    rng = np.random.default_rng([seed, seeds])
    taken_BS = rng.multinomial(seeds - 1, np.full(seeds, 1 / seeds), resamples) / (seeds - 1)
    times_BQ = _draw_queries(tuple(map(len, strata)), seed, resamples)
    sum_BS = times_BQ @ share_SQ[:, np.concatenate(strata)].T.astype(np.float32)
    sums: Floats = np.einsum("bs,bs->b", taken_BS, sum_BS)
    return sums


@lru_cache(maxsize=4)
def _draw_queries(sizes: tuple[int, ...], seed: int, resamples: int) -> NDArray[np.float32]:
    """Return how often each query is in each resample (B, Q): `sizes` of them a stratum.

    All comparisons over the same queries draw the same ones: kept, since drawing takes longest.
    """
    rng = np.random.default_rng([seed, *sizes])
    times_BQ = np.empty((resamples, sum(sizes)), np.float32)
    for times_BC, size in zip(
        np.split(times_BQ, np.cumsum(sizes[:-1]), axis=1), sizes, strict=True
    ):
        for first in range(0, resamples, _TOGETHER):
            part_bC = times_BC[first : first + _TOGETHER]
            drawn_bC = rng.integers(size, size=part_bC.shape, dtype=np.int64)
            drawn_bC += np.arange(len(part_bC))[:, None] * size
            counts = np.bincount(drawn_bC.ravel(), minlength=part_bC.size)
            part_bC[:] = counts.reshape(part_bC.shape)
    return times_BQ


@dataclass(frozen=True)
class _Parts:
    """Variances of the mean difference, each with the degrees of freedom of its estimate."""

    seeds: float
    """That seeds differ, the noise of single answers in it."""
    queries: float
    """That queries differ, the same noise in it."""
    noise: float
    """That noise alone."""
    estimates: Sequence[tuple[float, int]]

    @classmethod
    def of(cls, share_SQ: Floats, strata: Sequence[NDArray[np.int64]]) -> _Parts:
        """Work them out as a two-way analysis of variance does, stratum by stratum."""
        count = len(share_SQ)
        seeds = float(np.var(share_SQ.sum(axis=1), ddof=1)) / count
        queries, noise = [], []
        for stratum in (stratum for stratum in strata if len(stratum) > 1):
            share, size = share_SQ[:, stratum], len(stratum)
            rest = share - share.mean(axis=0) - share.mean(axis=1, keepdims=True) + share.mean()
            free = (count - 1) * (size - 1)
            queries.append((size * float(np.var(share.mean(axis=0), ddof=1)), size - 1))
            noise.append((size * float(np.sum(rest**2)) / free / count, free))
        return cls(
            seeds,
            sum(variance for variance, _ in queries),
            sum(variance for variance, _ in noise),
            [(seeds, count - 1), *queries, *noise],
        )

    def degrees_of_freedom(self) -> float:
        """Return Satterthwaite's degrees of freedom of seeds + queries - noise."""
        total = max(self.seeds + self.queries - self.noise, self.seeds, self.queries)
        return total**2 / sum(variance**2 / free for variance, free in self.estimates)
