"""Answers: the ranks that one method gave its targets, by seed and query.

Shapes: S seeds, Q queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raycd.compare.statistics import Difference, Spread, difference, over_seeds, weights
from raycd.evaluate import AVERAGE, NOT_FOUND, Metric


@dataclass(frozen=True)
class Answers:
    """The ranks of targets, from 1, NOT_FOUND where one cannot be found."""

    ranks_SQ: NDArray[np.int64]
    categories: Sequence[str]
    """Each query's (Q,)."""
    seeds: Sequence[int] | None
    """Each training's (S,). None: nothing was trained, and the one row stands for every seed."""

    @classmethod
    def of(
        cls,
        ranks: Sequence[Sequence[int | None]],
        categories: Sequence[str],
        seeds: Sequence[int] | None,
    ) -> Answers:
        """Return the answers of rows of ranks, None where a target cannot be found."""
        rows = [[NOT_FOUND if rank is None else rank for rank in row] for row in ranks]
        return cls(np.array(rows, np.int64), categories, seeds)

    def recalls(self, metric: Metric) -> list[float]:
        """Return the metric, a fraction, of each seed."""
        hits_SQ, categories = self._hits(metric)
        values: list[float] = (hits_SQ @ weights(categories)).tolist()
        return values

    def spread(self, metric: Metric) -> Spread:
        """Return its mean over seeds, with deviation and interval; neither where none trained."""
        return over_seeds(self.recalls(metric))

    def minus(self, baseline: Answers, metric: Metric) -> Difference | None:
        """Return how much greater the metric is than the baseline's, paired by seed and query.

        Seeds that only one of them has are left out; None where they share none.
        """
        pairs = list(self._pairs(baseline))
        if not pairs:
            return None
        hits_SQ, categories = self._hits(metric)
        others_SQ, _ = baseline._hits(metric)
        own, others = (list(rows) for rows in zip(*pairs, strict=True))
        return difference(others_SQ[others], hits_SQ[own], categories)

    def _pairs(self, baseline: Answers) -> Iterator[tuple[int, int]]:
        """Yield the rows of both for each seed that both have."""
        if self.seeds is None and baseline.seeds is None:
            yield from [(0, 0), (0, 0)]  # two rows that do not vary: their queries alone do
        elif self.seeds is None:
            yield from ((0, row) for row in range(len(baseline.ranks_SQ)))
        elif baseline.seeds is None:
            yield from ((row, 0) for row in range(len(self.ranks_SQ)))
        else:
            rows = {seed: row for row, seed in enumerate(baseline.seeds)}
            yield from ((row, rows[s]) for row, s in enumerate(self.seeds) if s in rows)

    def _hits(self, metric: Metric) -> tuple[NDArray[np.bool_], list[str]]:
        """Return which targets are among the first k (S, queries of the metric's categories)."""
        chosen = [
            column
            for column, category in enumerate(self.categories)
            if metric.category in (AVERAGE, category)
        ]
        return self.ranks_SQ[:, chosen] <= metric.k, [self.categories[column] for column in chosen]
