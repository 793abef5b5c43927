"""Preprocessed pixels of a data set's images, by image id, kept in memory up to a limit.

There is no augmentation, so later epochs can reuse the pixels of the first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from raycd.config import DataConfig
from raycd.data.images import load
from raycd.data.preprocess import Preprocess


class PixelCache:
    """Image ids -> uint8 pixels (B, H, W, 3). `paths` holds readable images only."""

    def __init__(
        self, paths: Mapping[str, str], preprocess: Preprocess, config: DataConfig, limit_mib: int
    ) -> None:
        self.paths, self.preprocess, self.config = paths, preprocess, config
        self._most = limit_mib * 2**20 // (3 * math.prod(preprocess.size))
        self._kept: dict[str, torch.Tensor] = {}

    def __call__(self, image_ids: Sequence[str]) -> torch.Tensor:
        """Return the pixels of the images. Raises BrokenImage where one cannot be read any more."""
        return torch.stack([self.one(image_id) for image_id in image_ids])

    def one(self, image_id: str) -> torch.Tensor:
        """Return the pixels (H, W, 3) uint8 of one image."""
        kept = self._kept.get(image_id)
        if kept is not None:
            return kept
        image = load(
            self.paths[image_id], max_pixels=self.config.max_pixels, min_side=self.config.min_side
        )
        pixels = self.preprocess(image)
        if len(self._kept) < self._most:
            self._kept[image_id] = pixels
        return pixels
