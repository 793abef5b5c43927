"""The images that were added after an index was built, and what filters find among them."""

from __future__ import annotations

from threading import Lock
from typing import Any

import numpy as np
from cachetools import LRUCache

from raycd.gallery import conditions
from raycd.gallery.conditions import Conditions
from raycd.gallery.records import Row
from raycd.index.structure import Mask

KEPT_FILTERS = 256  # whose answers for added images are kept: a byte an image


class AddedRows(list[Row]):
    """Images in the order in which they were added. They stay as they are, and more follow."""

    def __init__(self) -> None:
        super().__init__()
        self._masks: LRUCache[Any, Mask] = LRUCache(KEPT_FILTERS)
        self._lock = Lock()

    def mask(self, categories: tuple[str, ...], wanted: Conditions, count: int) -> Mask:
        """Return which of the first `count` (N,) a filter finds; each row is asked once."""
        with self._lock:
            known_N = self._masks.get((categories, wanted), np.empty(0, np.bool_))
            if len(known_N) < count:
                new = [_fits(row, categories, wanted) for row in self[len(known_N) : count]]
                known_N = np.concatenate([known_N, np.array(new, np.bool_)])
                self._masks[categories, wanted] = known_N
        return known_N[:count]


def _fits(row: Row, categories: tuple[str, ...], wanted: Conditions) -> bool:
    in_category = not categories or not set(categories).isdisjoint(row.categories)
    return in_category and all(
        conditions.holds(condition, row.attributes.get(name)) for name, condition in wanted
    )
