"""A cache of text features: a text that was seen before is not encoded again."""

from __future__ import annotations

import threading

import torch
from cachetools import LRUCache


class TextCache:
    """The features of the last used texts, for any thread.

    Args:
        size: Number of texts; 0 keeps none.
    """

    def __init__(self, size: int) -> None:
        self._kept: LRUCache[str, tuple[torch.Tensor, bool]] = LRUCache(size)
        self._lock = threading.Lock()

    def get(self, text: str) -> tuple[torch.Tensor, bool] | None:
        """Return a text's feature (D,), and whether its end was cut off; None if unknown."""
        with self._lock:
            return self._kept.get(text)

    def put(self, text: str, feature_D: torch.Tensor, truncated: bool) -> None:
        """Keep a text's feature, in place of the least recently used one."""
        with self._lock:
            if self._kept.maxsize:
                self._kept[text] = feature_D, truncated
