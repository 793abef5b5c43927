"""Preprocessing of decoded images for an encoder: one home, for training and serving.

RGB image --Preprocess--> uint8 pixels --normalise--> float32 (3, size, size)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from PIL import Image

from raycd.data.images import fitted
from raycd.errors import DataError

# Longer images are shrunk before they are padded: a strip of 8 x 65500 would take 10 GB
_LONGEST_PADDED = 4096


@dataclass(frozen=True)
class TargetPad:
    """Padding of the short side with zeros to long / ratio where long / short >= ratio.

    The method is Clip4Cir's.
    """

    ratio: float

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the padded RGB image; the same object where there is nothing to pad."""
        width, height = image.size
        long = max(width, height)
        if long / min(width, height) < self.ratio:
            return image
        left, top = (max(int((long / self.ratio - side) / 2), 0) for side in (width, height))
        if left == 0 and top == 0:
            return image
        padded = Image.new("RGB", (width + 2 * left, height + 2 * top))
        padded.paste(image, (left, top))
        return padded


def _centre(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


@dataclass(frozen=True)
class Preprocess:
    """Preprocessing: TargetPad, bicubic resize, centre crop, normalisation.

    RGB image -> uint8 pixels (size, size, 3) -> normalised float32 (3, size, size): the same
    numbers as torchvision's Resize, CenterCrop, ToTensor and Normalize. The two halves are separate
    because the first needs the file and a CPU while the second belongs on the encoder's device;
    bytes travel between them. Extreme strips are shrunk first, so that memory stays bounded
    whatever `decode` accepted.
    """

    size: int
    target_pad: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Return uint8 pixels (size, size, 3). Raises nothing on what `decode` returns."""
        return torch.from_numpy(np.array(self._square(image)))

    def normalise(self, pixels_BSS3: torch.Tensor) -> torch.Tensor:
        """Return float32 (B, 3, S, S), channels last in memory, of uint8 pixels (B, S, S, 3)."""
        mean, std = (
            torch.tensor(values, device=pixels_BSS3.device) for values in (self.mean, self.std)
        )
        return pixels_BSS3.float().div_(255).sub_(mean).div_(std).permute(0, 3, 1, 2)

    def _square(self, image: Image.Image) -> Image.Image:
        """Resize the shorter side to `size` and crop the longer one about its centre."""
        long, short = max(image.size), min(image.size)
        if long > _LONGEST_PADDED and long / short >= self.target_pad:
            image = fitted(image, _LONGEST_PADDED)
        image = TargetPad(self.target_pad)(image)
        short = min(image.size)
        # Only a large target_pad lets such strips through: their middle is enough
        if max(image.size) > 4 * short:
            image = _centre(image, *(min(side, 4 * short) for side in image.size))
        width, height = (int(self.size * side / short) for side in image.size)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        return image if width == height else _centre(image, self.size, self.size)

    def to_dict(self) -> dict[str, Any]:
        """Return what a bundle keeps, as JSON values."""
        return {
            "size": self.size,
            "target_pad": self.target_pad,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the inverse of `to_dict`. Raises DataError where a value is absent or invalid."""
        try:
            size, target_pad = int(values["size"]), float(values["target_pad"])
            mean, std = _three(values["mean"]), _three(values["std"])
            possible = size > 0 and target_pad >= 1 and min(std) > 0
        except (KeyError, TypeError, ValueError):
            possible = False
        if not possible:
            raise DataError(
                "the preprocessing cannot be read",
                got=dict(values),
                expected="size > 0, target_pad >= 1, three means, three positive deviations",
            )
        return cls(size, target_pad, mean, std)


def _three(values: Iterable[Any]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
