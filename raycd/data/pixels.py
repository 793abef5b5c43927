"""Preprocessed pixels of a data set's images, by image id, kept in memory up to a limit.

There is no augmentation, so later epochs can reuse the pixels of the first, and the processes of a
machine those of each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Literal

import psutil
import torch

from raycd.config import DataConfig
from raycd.data.images import load
from raycd.data.preprocess import Preprocess
from raycd.data.shared_pixels import SharedPixels
from raycd.distributed import first_of_machine

CGROUP = "/sys/fs/cgroup/memory."  # of this process, in its container


class PixelCache:
    """Image ids -> uint8 pixels (B, H, W, 3).

    Args:
        paths: Of readable images only.
        limit_mib: Of all processes that share it; auto: half of the memory that is available now.
        first: Images that are kept before others, where not all can be.
    """

    def __init__(
        self,
        paths: Mapping[str, str],
        preprocess: Preprocess,
        config: DataConfig,
        limit_mib: int | Literal["auto"],
        first: Iterable[str] = (),
    ) -> None:
        self.paths, self.preprocess, self.config = paths, preprocess, config
        shape = (*preprocess.size, 3)
        limit = available() // 2 if limit_mib == "auto" else limit_mib * 2**20
        wanted = dict.fromkeys(chain((i for i in first if i in paths), paths))
        kept = islice(wanted, limit // math.prod(shape))
        self._rows = {image_id: row for row, image_id in enumerate(kept)}
        self.kept = SharedPixels(len(self._rows), shape)

    def share(self) -> None:
        """Use the memory of the first training worker on this machine; all workers must call it."""
        path, name = first_of_machine((self.kept.path, self.kept.name))
        if name != self.kept.name:
            self.kept.move(path, name)

    def __call__(self, image_ids: Sequence[str]) -> torch.Tensor:
        """Return the pixels of the images. Raises BrokenImage where one cannot be read any more."""
        return torch.stack([self.one(image_id) for image_id in image_ids])

    def one(self, image_id: str) -> torch.Tensor:
        """Return the pixels (H, W, 3) uint8 of one image."""
        row = self._rows.get(image_id)
        kept = None if row is None else self.kept.get(row)
        if kept is not None:
            return kept
        image = load(
            self.paths[image_id],
            max_pixels=self.config.max_pixels,
            min_side=self.config.min_side,
            enough=self.preprocess.enough,
        )
        pixels = self.preprocess(image)
        if row is not None:
            self.kept.put(row, pixels)
        return pixels


def available() -> int:
    """Return the bytes of memory that this machine, or this container, has left."""
    found = int(psutil.virtual_memory().available)
    try:
        limit, used = (int(Path(f"{CGROUP}{name}").read_text()) for name in ("max", "current"))
        lines = Path(f"{CGROUP}stat").read_text().splitlines()
        used -= int(dict(line.split() for line in lines)["inactive_file"])  # given back when needed
    except (OSError, ValueError, KeyError):  # another system, or no limit
        return found
    return max(min(found, limit - used), 0)
