"""A cache that counts what is found in it: of features of texts, of thumbnails."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Generic, TypeVar

from cachetools import LRUCache

Value = TypeVar("Value")


class CountedCache(Generic[Value]):
    """The last used values by their names, for any thread.

    Args:
        size: Number of values; 0 keeps none.
    """

    def __init__(self, size: int) -> None:
        self._kept: LRUCache[str, Value] = LRUCache(size)
        self._looked: Counter[str] = Counter()
        self._lock = threading.Lock()

    def get(self, name: str) -> Value | None:
        """Return a value; None if unknown."""
        with self._lock:
            found: Value | None = self._kept.get(name)
            self._looked["miss" if found is None else "hit"] += 1
            return found

    def put(self, name: str, value: Value) -> None:
        """Keep a value, in place of the least recently used one."""
        with self._lock:
            if self._kept.maxsize:
                self._kept[name] = value

    def looked(self) -> Counter[str]:
        """Return how often `get` was a hit, and a miss, since the last call."""
        with self._lock:
            looked, self._looked = self._looked, Counter()
            return looked
