"""The images that were added after an index was built, and what filters find among them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import suppress
from threading import Lock

import numpy as np
from cachetools import LRUCache

from raycd.gallery import conditions
from raycd.gallery.conditions import Conditions
from raycd.gallery.records import Row
from raycd.index.structure import Mask

KEPT_MIB = 16  # of answers for added images, a byte each
_ENTRY = 4096  # bytes that a filter and what keeps it may take beside


class AddedRows(list[Row]):
    """Images in the order in which they were added. They stay as they are, and more follow."""

    def __init__(self) -> None:
        super().__init__()
        self._masks: LRUCache[Hashable, Mask] = LRUCache(
            KEPT_MIB * 2**20, getsizeof=lambda mask: mask.nbytes + _ENTRY
        )
        self._lock = Lock()

    def mask(self, categories: tuple[str, ...], wanted: Conditions, count: int) -> Mask:
        """Return which of the first `count` (N,) a filter finds."""
        return self.where((categories, wanted), lambda row: _fits(row, categories, wanted), count)

    def where(self, question: Hashable, fits: Callable[[Row], bool], count: int) -> Mask:
        """Return which of the first `count` (N,) fit, in answer to a question of this name.

        Each row is asked once.
        """
        with self._lock:
            known_N = self._masks.get(question, np.empty(0, np.bool_))
            if len(known_N) < count:
                new = [fits(row) for row in self[len(known_N) : count]]
                known_N = np.concatenate([known_N, np.array(new, np.bool_)])
                with suppress(ValueError):  # one that is too large is not kept
                    self._masks[question] = known_N
        return known_N[:count]


def _fits(row: Row, categories: tuple[str, ...], wanted: Conditions) -> bool:
    in_category = not categories or not set(categories).isdisjoint(row.categories)
    return in_category and all(
        conditions.holds(condition, row.attributes.get(name)) for name, condition in wanted
    )
