"""Guarded decoding and preprocessing of images: one home, for training and serving.

bytes --decode--> RGB image --Preprocess--> uint8 pixels --normalise--> float32 (3, size, size). What cannot be decoded
whole is refused as `BrokenImage` with a reason that reports count by. Dimensions are read from the header before any
pixel is decoded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError

from raycd.data import stores
from raycd.data.folder import is_local
from raycd.errors import DataError

Reason = Literal["missing", "empty", "not_an_image", "truncated", "too_small", "too_large"]
REASONS: tuple[Reason, ...] = get_args(Reason)
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF orientation -> what makes it upright
_SHRINK = "make it smaller"
_LONGEST_PADDED = 4096  # longer images are shrunk before they are padded: a strip of 8 x 65500 would take 10 GB


class BrokenImage(DataError):
    """An image that is absent or cannot be decoded whole; `reason` is one of REASONS."""

    def __init__(
        self, what: str, *, reason: Reason, got: object = None, expected: object = None, do: str | None = None
    ) -> None:
        super().__init__(what, got=got, expected=expected, do=do)
        self.reason: Reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        return _restored, (str(self), self.reason)


def _restored(message: str, reason: Reason) -> BrokenImage:
    return BrokenImage(message, reason=reason)


def load(path: str | None, *, max_pixels: int, min_side: int, patient: bool = True) -> Image.Image:
    """`decode` of `read_bytes`; a null path is missing too. The message of a `BrokenImage` names the path."""
    if path is None:
        raise BrokenImage("no file was found for this image", reason="missing")
    try:
        return decode(read_bytes(path, patient=patient), max_pixels=max_pixels, min_side=min_side)
    except BrokenImage as error:
        if path in str(error):
            raise
        raise BrokenImage(f"{path}: {error}", reason=error.reason) from error


def read_bytes(path: str, *, patient: bool = True) -> bytes:
    """The bytes of a local file or any fsspec URI.

    Raises `BrokenImage` (missing) where there is no file or no right to read a local one. A store that refuses, is busy
    or cannot be reached says nothing about the image and is a plain `DataError`, after some tries where `patient`.
    """
    try:
        if not is_local(path):
            return stores.read(path, patient=patient)
        with open(path, "rb") as file:
            return bytes(file.read())
    except DataError:
        raise
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        raise BrokenImage(f"{path} cannot be read", reason="missing", got=f"{type(error).__name__}: {error}") from error
    except Exception as error:
        raise DataError(
            f"reading {path} failed", got=f"{type(error).__name__}: {error}", do="check the disk that it lies on"
        ) from error


def decode(data: bytes, *, max_pixels: int, min_side: int, formats: Sequence[str] = FORMATS) -> Image.Image:
    """Decode the first frame upright as RGB, transparency over white.

    Raises `BrokenImage`: empty; not_an_image (none of `formats`, which are some of FORMATS); too_large (more than
    `max_pixels`, or than about 179 million, where Pillow's own guard stands); too_small (a side under `min_side`);
    truncated (pixels not whole).
    """
    if not data:
        raise BrokenImage("the file is empty", reason="empty", got="0 bytes", expected="an image")
    try:
        image: Image.Image = Image.open(BytesIO(data), formats=FORMATS)
        _check_format(image.format, formats)
        _check_size(image.size, max_pixels, min_side)
        image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BrokenImage("the image is too large", reason="too_large", got=error, do=_SHRINK) from error
    except BrokenImage:
        raise
    except UnidentifiedImageError as error:
        raise _unidentified(data, formats) from error
    except Exception as error:  # Pillow's plugins raise anything on hostile bytes: zlib.error, struct.error, ...
        raise BrokenImage(
            "the image is truncated or damaged", reason="truncated", got=f"{type(error).__name__}: {error}"
        ) from error
    return _to_rgb(_upright(image))


def _check_size(size: tuple[int, int], max_pixels: int, min_side: int) -> None:
    width, height = size
    got = f"{width} x {height} pixels"
    if width * height > max_pixels:
        raise BrokenImage(
            "the image is too large",
            reason="too_large",
            got=got,
            expected=f"at most {max_pixels} (data.max_pixels)",
            do=_SHRINK,
        )
    if min(size) < min_side:
        raise BrokenImage(
            "the image is too small",
            reason="too_small",
            got=got,
            expected=f"sides of at least {min_side} (data.min_side)",
            do="take a larger one",
        )


def _check_format(found: str | None, formats: Sequence[str]) -> None:
    if ("JPEG" if found == "MPO" else found) not in formats:  # MPO: a phone's JPEG with a second picture in it
        raise BrokenImage(
            "images of this format are not taken",
            reason="not_an_image",
            got=found,
            expected=f"one of {', '.join(formats)}",
            do="convert it",
        )


def _unidentified(data: bytes, formats: Sequence[str]) -> BrokenImage:
    if data.startswith(_SIGNATURES) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP"):
        return BrokenImage("the image is truncated or damaged", reason="truncated", got=f"{len(data)} bytes")
    return BrokenImage(
        "the file is not an image that can be read",
        reason="not_an_image",
        got=f"{len(data)} bytes that begin {data[:12]!r}",
        expected=f"one of {', '.join(formats)}",
    )


def _upright(image: Image.Image) -> Image.Image:
    """Turned as EXIF says; damaged EXIF is no reason to refuse good pixels."""
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # EXIF is untrusted bytes too: struct.error, SyntaxError, ...
        return image
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # I;16 and, in some TIFFs, I: 16 bits in a wider integer
        levels = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    elif image.mode == "RGB":
        return image
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise BrokenImage(
            "the image's colours cannot be read",
            reason="not_an_image",
            got=f"mode {image.mode}",
            do="convert it to RGB",
        ) from error


@dataclass(frozen=True)
class TargetPad:
    """Pads the short side with zeros to long / ratio where long / short >= ratio (Clip4Cir)."""

    ratio: float

    def __call__(self, image: Image.Image) -> Image.Image:
        """RGB image -> RGB image, the same object where nothing is to pad."""
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
    """RGB image -> uint8 pixels (size, size, 3) -> normalised float32 (3, size, size): TargetPad, bicubic resize,
    centre crop, normalisation.

    The same numbers as torchvision's Resize, CenterCrop, ToTensor and Normalize. The two halves are apart because the
    first needs the file and a processor, the second belongs on the encoder's device: between them travel bytes.
    Extreme strips are cut down first, so that memory stays bounded whatever `decode` let through.
    """

    size: int
    target_pad: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """uint8 pixels (size, size, 3). Raises nothing on what `decode` returns."""
        return torch.from_numpy(np.array(self._square(image)))

    def normalise(self, pixels_BSS3: torch.Tensor) -> torch.Tensor:
        """uint8 pixels (B, size, size, 3) -> float32 (B, 3, size, size) with the channels last in memory."""
        mean, std = (torch.tensor(values, device=pixels_BSS3.device) for values in (self.mean, self.std))
        return pixels_BSS3.float().div_(255).sub_(mean).div_(std).permute(0, 3, 1, 2)

    def _square(self, image: Image.Image) -> Image.Image:
        """(size, size): the shorter side resized to size, the longer one cropped about its centre."""
        long, short = max(image.size), min(image.size)
        if long > _LONGEST_PADDED and long / short >= self.target_pad:
            shrink = _LONGEST_PADDED / long
            width, height = (max(round(side * shrink), 1) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        image = TargetPad(self.target_pad)(image)
        short = min(image.size)
        if max(image.size) > 4 * short:  # only where target_pad allows it: of a strip, the middle is enough
            image = _centre(image, *(min(side, 4 * short) for side in image.size))
        width, height = (int(self.size * side / short) for side in image.size)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        return image if width == height else _centre(image, self.size, self.size)

    def to_dict(self) -> dict[str, Any]:
        """What a bundle keeps, as JSON values."""
        return {"size": self.size, "target_pad": self.target_pad, "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. Raises `DataError` where a value is absent or impossible."""
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
                expected="size > 0, target_pad >= 1, three means and three positive standard deviations",
            )
        return cls(size, target_pad, mean, std)


def _three(values: Iterable[Any]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
