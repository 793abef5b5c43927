"""A loss that explodes against its own history: the rule, without a loop."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

WINDOW = 10  # steps whose median is looked at: one bad batch is no explosion


class Explosion:
    """The rule: the median of WINDOW steps lies far above what the losses began with.

    Far above is more than `factor` times the greatest of three: the median of the first WINDOW
    steps over triplets of this kind (pseudo triplets have another loss than originals), the loss
    log(B) of guessing among the B targets of a batch, and 1. So neither a spike, nor a loss that
    starts near 0, nor a first epoch of another kind is taken for one.
    """

    def __init__(
        self, factor: float, batch_size: int, history: Iterable[Mapping[str, Any]] = ()
    ) -> None:
        """Begin, or go on after the epochs of `history`, whose first has only its mean loss.

        A `factor` of 0 finds no explosion.
        """
        self.factor = factor
        self._least = max(math.log(batch_size), 1.0)
        self._began: dict[str, float] = {}
        for entry in history:
            self._began.setdefault(entry["kind"], entry["loss"])

    def limit(self, kind: str) -> float:
        """Return the greatest loss that is none; infinity where there is no history yet."""
        if not self.factor or kind not in self._began:
            return math.inf
        return self.factor * max(self._least, self._began[kind])

    def find(self, kind: str, losses: Sequence[float], *, ended: bool) -> float | None:
        """Return the median of an epoch's last losses where it has exploded, else None.

        `losses` are those of the epoch so far, which has `ended` or goes on.
        """
        if len(losses) < WINDOW and not ended:
            return None
        # Of a restart inside of an epoch the first look is at all steps that it has had
        self._began.setdefault(kind, statistics.median(losses[:WINDOW]))
        median = statistics.median(losses[-WINDOW:])
        return median if median > self.limit(kind) else None
