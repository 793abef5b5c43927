"""Preprocessing of decoded images for an encoder: one home, for training and serving.

RGB image --Preprocess--> uint8 pixels --normalise--> float32 (3, H, W)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from PIL import Image

from raycd.data.images import fitted
from raycd.errors import ConfigError, DataError

Interpolation = Literal["bicubic", "bilinear"]
ResizeMode = Literal["shortest", "longest", "squash"]
Resize = tuple[tuple[int, int], Interpolation, ResizeMode, int]  # size, ..., fill

# Longer images are shrunk before they are padded: a strip of 8 x 65500 would take 10 GB
_LONGEST_PADDED = 4096
# Of strips whose sides differ by more, relative to the encoder's, the middle is taken: resizing the
# shorter side of 8 x 65500 to 224 would take a gigabyte
_MOST_ASPECT = 64


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
    if image.size == (width, height):
        return image
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


@dataclass(frozen=True)
class Preprocess:
    """Preprocessing: an image becomes pixels of a fixed size, then normalised numbers.

    RGB image -> uint8 pixels (H, W, 3) -> normalised float32 (3, H, W). Without `target_pad` it is
    open_clip's own, pixel for pixel: `resize_mode` shortest resizes the shorter side and crops the
    longer one about its centre, longest resizes the longer side and fills the rest with
    `fill_color`, squash resizes both. With it, it is Clip4Cir's: TargetPad, then shortest.

    The two halves are separate because the first needs the file and a CPU while the second belongs
    on the encoder's device; bytes travel between them. Extreme strips are cut or shrunk first, so
    that memory stays bounded whatever `decode` accepted.
    """

    size: tuple[int, int]
    """Height and width of the pixels."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation = "bicubic"
    resize_mode: ResizeMode = "shortest"
    fill_color: int = 0
    target_pad: float | None = None
    """Ratio of TargetPad."""
    reduced: bool = False
    """Whether JPEGs may be decoded at a reduced scale, of at least twice the pixels' sides."""

    @property
    def enough(self) -> int:
        """Return the `enough` of `images.decode`."""
        return 2 * max(self.size) if self.reduced else 0

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Return uint8 pixels (H, W, 3). Raises nothing on what `decode` returns."""
        resized = self._resized(image) if self.target_pad is None else self._padded(image)
        return torch.from_numpy(np.array(resized))

    def normalise(self, pixels_BHW3: torch.Tensor) -> torch.Tensor:
        """Return float32 (B, 3, H, W), channels last in memory, of uint8 pixels (B, H, W, 3)."""
        mean, std = (constant(values, pixels_BHW3.device) for values in (self.mean, self.std))
        return pixels_BHW3.float().div_(255).sub_(mean).div_(std).permute(0, 3, 1, 2)

    def with_target_pad(self, ratio: float) -> Self:
        """Return Clip4Cir's preprocessing with this one's size, mean and deviation.

        Raises ConfigError where the pixels are not square.
        """
        if self.size[0] != self.size[1]:
            raise ConfigError(
                "encoder.preprocess target_pad is for square images",
                got="an encoder of {} x {} pixels".format(*self.size),
                do="set encoder.preprocess auto",
            )
        return replace(
            self, interpolation="bicubic", resize_mode="shortest", fill_color=0, target_pad=ratio
        )

    def _resized(self, image: Image.Image) -> Image.Image:
        steps = _steps((self.size, self.interpolation, self.resize_mode, self.fill_color))
        return steps(self._without_ends(image))

    def _without_ends(self, image: Image.Image) -> Image.Image:
        """Return the middle of a strip whose resized copy would be huge or have no pixel."""
        (height, width), (rows, columns) = (image.height, image.width), self.size
        if self.resize_mode == "squash":
            return image
        if self.resize_mode == "longest":  # the shorter side keeps at least a pixel
            return _centre(image, min(width, height * columns), min(height, width * rows))
        most_columns = max(_MOST_ASPECT * height * columns // rows, 1)
        most_rows = max(_MOST_ASPECT * width * rows // columns, 1)
        return _centre(image, min(width, most_columns), min(height, most_rows))

    def _padded(self, image: Image.Image) -> Image.Image:
        """Pad, resize the shorter side and crop the longer one about its centre."""
        assert self.target_pad is not None
        side = self.size[0]
        long, short = max(image.size), min(image.size)
        if long > _LONGEST_PADDED and long / short >= self.target_pad:
            image = fitted(image, _LONGEST_PADDED)
        image = TargetPad(self.target_pad)(image)
        short = min(image.size)
        # Only a large target_pad lets such strips through: their middle is enough
        if max(image.size) > 4 * short:
            image = _centre(image, *(min(side, 4 * short) for side in image.size))
        width, height = (int(side * length / short) for length in image.size)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        return image if width == height else _centre(image, side, side)

    def open_clip(self) -> dict[str, Any]:
        """Return the `preprocess_cfg` of open_clip, which leaves out TargetPad when it reads it."""
        padding = {} if self.target_pad is None else {"target_pad": self.target_pad}
        return {
            **padding,
            "size": list(self.size),
            "mode": "RGB",
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": self.interpolation,
            "resize_mode": self.resize_mode,
            "fill_color": self.fill_color,
        }

    @classmethod
    def of_open_clip(cls, settings: Mapping[str, Any]) -> Self:
        """Return what a whole `preprocess_cfg` of open_clip describes.

        Raises DataError where a value is absent or invalid.
        """
        try:
            size, mean, std = (settings[name] for name in ("size", "mean", "std"))
            mean, std = ([x] * 3 if isinstance(x, (int, float)) else x for x in (mean, std))
            interpolation = str(settings["interpolation"])
            found = cls(
                _two(size),
                _three(mean),
                _three(std),
                # random is a choice of training; open_clip's own transform takes bicubic then
                "bicubic" if interpolation == "random" else interpolation,  # type: ignore[arg-type]  # checked below
                settings["resize_mode"],
                int(settings["fill_color"]),
            )
        except (KeyError, TypeError, ValueError):
            raise _unreadable(settings) from None
        return found._possible(settings)

    def to_dict(self) -> dict[str, Any]:
        """Return what a bundle keeps, as JSON values."""
        rest = {"mean": list(self.mean), "std": list(self.std)}
        reduced = {"reduced": True} if self.reduced else {}
        if self.target_pad is not None:
            return {"size": self.size[0], "target_pad": self.target_pad, **rest, **reduced}
        return {key: value for key, value in self.open_clip().items() if key != "mode"} | reduced

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the inverse of `to_dict`. Raises DataError where a value is absent or invalid."""
        if "target_pad" not in values:
            return replace(cls.of_open_clip(values), reduced=values.get("reduced") is True)
        try:
            size, ratio = _two(values["size"]), float(values["target_pad"])
            found = cls(size, _three(values["mean"]), _three(values["std"]), target_pad=ratio)
            found = replace(found, reduced=values.get("reduced") is True)
        except (KeyError, TypeError, ValueError):
            raise _unreadable(values) from None
        return found._possible(values)

    def _possible(self, values: Mapping[str, Any]) -> Self:
        possible = (
            min(self.size) > 0
            and min(self.std) > 0
            and self.interpolation in get_args(Interpolation)
            and self.resize_mode in get_args(ResizeMode)
            and 0 <= self.fill_color <= 255
            and (self.target_pad is None or self.target_pad >= 1)
        )
        if not possible:
            raise _unreadable(values)
        return self


def constant(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Return numbers on a device: copying them for each batch would wait for the device."""
    return _copy(values, device)


@lru_cache(maxsize=8)
def _copy(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):  # whoever asks first may not train
        return torch.tensor(values, device=device)


@lru_cache(maxsize=8)
def _steps(resize: Resize) -> Callable[[Image.Image], Image.Image]:
    """Return open_clip's transform up to the pixels."""
    import open_clip  # takes seconds; readers of data sets do without

    size, interpolation, resize_mode, fill_color = resize
    whole = open_clip.image_transform(
        size,
        is_train=False,
        interpolation=interpolation,
        resize_mode=resize_mode,
        fill_color=fill_color,
    )
    convert = open_clip.transform.MaybeConvertMode  # what follows it makes the normalised tensor
    kinds = [type(step) for step in whole.transforms]
    whole.transforms = whole.transforms[: kinds.index(convert)]
    resized: Callable[[Image.Image], Image.Image] = whole
    return resized


def _unreadable(values: Mapping[str, Any]) -> DataError:
    return DataError(
        "the preprocessing cannot be read",
        got=str(dict(values))[:500],
        expected="size > 0, three means, three positive deviations, and either target_pad >= 1 or "
        f"interpolation ({' or '.join(get_args(Interpolation))}), "
        f"resize_mode ({', '.join(get_args(ResizeMode))}) and fill_color (0 to 255)",
    )


def _two(size: Any) -> tuple[int, int]:
    """Return height and width of what open_clip takes as a size: one number, or one or two."""
    numbers = [size] if isinstance(size, (int, float)) else list(size)
    height, width = numbers * 2 if len(numbers) == 1 else numbers
    return int(height), int(width)


def _three(values: Iterable[Any]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
