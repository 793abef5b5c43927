"""The features of the texts that were asked last: a text that was seen before is not encoded again."""

from __future__ import annotations

import threading

import torch
from cachetools import LRUCache


class TextCache:
    """Bounded, for any thread.

    Args:
        size: Texts at most; 0 keeps none.
    """

    def __init__(self, size: int) -> None:
        self._kept: LRUCache[str, tuple[torch.Tensor, bool]] = LRUCache(size)
        self._lock = threading.Lock()

    def get(self, text: str) -> tuple[torch.Tensor, bool] | None:
        """Its feature (D,), and whether its end was cut off, if it is there."""
        with self._lock:
            return self._kept.get(text)

    def put(self, text: str, feature_D: torch.Tensor, truncated: bool) -> None:
        """Keep it, and let go of the one that was not asked for longest."""
        with self._lock:
            if self._kept.maxsize:
                self._kept[text] = feature_D, truncated
