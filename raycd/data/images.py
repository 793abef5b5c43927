"""Guarded reading and decoding of images: one home, for training and serving.

bytes --decode--> RGB image; `preprocess` makes an encoder's pixels of it.

What cannot be decoded whole is refused as `BrokenImage` with a reason that reports count by.
Dimensions are read from the header before any pixel is decoded. Training, service, thumbnails and
reports all read pictures here; nowhere else does Pillow see the bytes of a foreign file.
"""

from __future__ import annotations

import errno
import os
import stat
import warnings
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import BinaryIO, Literal, TypeVar, get_args

from PIL import ExifTags, Image, UnidentifiedImageError

from raycd import stores
from raycd.data import containers, levels, parquet_images, parts
from raycd.data.folder import is_local
from raycd.errors import DataError
from raycd.redact import without_passwords

T = TypeVar("T")
Reason = Literal["missing", "empty", "not_an_image", "truncated", "too_small", "too_large"]
REASONS: tuple[Reason, ...] = get_args(Reason)
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

MAX_PIXELS, MIN_SIDE = 50_000_000, 8  # also data.max_pixels and data.min_side

_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF orientation -> what makes it upright; ImageOps.exif_transpose fails on damaged other tags
_SHRINK = "make it smaller"
_MOST_SCANS = 64  # of a JPEG; cameras and programs make 1 to about 20
_MOST_COVERED = 8  # how often the tiles of a TIFF may cover it: once for each of its planes

_ABSENT = (  # the path has no readable file; any other error says nothing about the file
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM),
    *(errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.ENODEV, errno.EINVAL),
)

# Pillow warns of damage, once for each of a thousand tags; `decode` reports what matters of it
warnings.filterwarnings("ignore", module=r"PIL\.")


class BrokenImage(DataError):
    """An image that is absent or cannot be decoded whole; `reason` is one of REASONS."""

    def __init__(
        self,
        what: str,
        *,
        reason: Reason,
        got: object = None,
        expected: object = None,
        do: str | None = None,
    ) -> None:
        super().__init__(what, got=got, expected=expected, do=do)
        self.reason: Reason = reason


def load(
    path: str | None,
    *,
    max_pixels: int = MAX_PIXELS,
    min_side: int = MIN_SIDE,
    patient: bool = True,
    enough: int = 0,
) -> Image.Image:
    """Return `decode` of `read_bytes`; a null path counts as missing.

    A path may name a part of a picture (`raycd.data.parts`), which is decoded at its own scale.
    Raises BrokenImage, whose message names the path.
    """
    if path is None:
        raise BrokenImage("no file was found for this image", reason="missing")
    try:
        whole, box = parts.split_box(path)
        image = decode(
            read_bytes(whole, patient=patient),
            max_pixels=max_pixels,
            min_side=min_side,
            enough=enough if box is None else 0,
        )
        return image if box is None else part(image, box)
    except BrokenImage as error:
        if _shown(path) in str(error):
            raise
        raise BrokenImage(f"{_shown(path)}: {error}", reason=error.reason) from error


def part(image: Image.Image, box: parts.Box) -> Image.Image:
    """Return a part of a picture as `parts.cut` makes it. Raises BrokenImage where it is empty."""
    found = parts.cut(image, box)
    if min(found.size) < 1:
        raise BrokenImage(
            "the part lies outside of the image",
            reason="too_small",
            got=str(box),
            expected=f"a box in {image.width} x {image.height} pixels",
        )
    return found


def read_bytes(path: str, *, patient: bool = True) -> bytes:
    """Return the bytes of a local file or any fsspec URI, or of a picture in a Parquet file.

    Raises BrokenImage (missing) where there is no file, or no permission to read a local one. A
    store that refuses, is busy or unreachable says nothing about the image and raises a plain
    DataError, after several tries where `patient`.
    """
    try:
        path, _ = parts.split_box(path)
        row = parts.split_row(path)
        if row is not None:
            return parquet_images.read(row, patient=patient)
        if not is_local(path):
            return stores.read(path, patient=patient)
        with _open_local(path) as file:
            return bytes(file.read())
    except DataError:
        raise
    except Exception as error:
        if _is_absent(error):
            got = f"{type(error).__name__}: {error}"
            raise BrokenImage(
                f"{_shown(path)} cannot be read", reason="missing", got=got
            ) from error
        raise DataError(
            f"reading {path} failed",
            got=f"{type(error).__name__}: {error}",
            do="check the disk that it is on",
        ) from error


def _shown(path: str) -> str:
    # A path may hold what no terminal or file should: NUL, line breaks, surrogates
    return repr(without_passwords(path))[1:-1]


def _open_local(path: str) -> BinaryIO:
    """Open a regular file: opening a pipe would block, and a device may have no end."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.ENXIO, "not a regular file", path)


def _is_absent(error: Exception) -> bool:
    if isinstance(
        error, (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
    ):
        return True
    if isinstance(error, OSError):
        return error.errno in _ABSENT
    return isinstance(error, ValueError)  # a NUL, or characters that no file system can encode


def decode(
    data: bytes,
    *,
    max_pixels: int = MAX_PIXELS,
    min_side: int = MIN_SIDE,
    formats: Sequence[str] = FORMATS,
    enough: int = 0,
) -> Image.Image:
    """Decode the first frame upright as RGB, transparency over white.

    Where both sides of a JPEG are at least twice `enough`, it is decoded at a half, a quarter or an
    eighth of its scale, as long as they stay so long; 0: always at its own. Limits are those of the
    whole picture.

    Raises BrokenImage: empty; not_an_image (none of `formats`, a part of FORMATS); too_large (more
    than `max_pixels`, or than Pillow's own limit of about 179 million); too_small (a side under
    `min_side`); truncated (pixels not whole).
    """
    if not data:
        raise BrokenImage("the file is empty", reason="empty", got="0 bytes", expected="an image")

    def whole(data: bytes) -> Image.Image:
        image = _opened(data, formats)
        _check_size(image.size, max_pixels, min_side)
        _check_cost(data, image)
        if enough:
            image.draft(None, (enough, enough))  # nothing but JPEG knows it
        image.load()
        return _upright(image)

    return _guarded(whole, data, formats)


def format_of(data: bytes) -> str:
    """Return the format by the header, one of FORMATS. Raises BrokenImage."""
    return _guarded(lambda data: _kind(_opened(data, FORMATS)), data, FORMATS)


def fitted(image: Image.Image, longest: int) -> Image.Image:
    """Shrink an image to at most `longest` a side; return the same object where it fits."""
    if max(image.size) <= longest:
        return image
    width, height = (max(round(side * longest / max(image.size)), 1) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _guarded(act: Callable[[bytes], T], data: bytes, formats: Sequence[str]) -> T:
    """Run `act` on a file, or on the pixels of a PNG whose other parts are damaged.

    Raises BrokenImage only.
    """
    try:
        return act(data)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BrokenImage(
            "the image is too large", reason="too_large", got=error, do=_SHRINK
        ) from error
    except BrokenImage:
        raise
    except Exception as error:  # Pillow's plugins raise anything: zlib.error, AssertionError, ...
        pixels = containers.only_pixels(data)
        if pixels is not None:
            return _guarded(act, pixels, formats)
        if isinstance(error, UnidentifiedImageError):
            raise _unidentified(data, formats) from error
        raise BrokenImage(
            "the image is truncated or damaged",
            reason="truncated",
            got=f"{type(error).__name__}: {error}",
        ) from error


def _opened(data: bytes, formats: Sequence[str]) -> Image.Image:
    """Read the header only; no pixel is decoded."""
    image: Image.Image = Image.open(BytesIO(data), formats=FORMATS)
    _check_format(_kind(image), formats)
    return image


def _kind(image: Image.Image) -> str:
    # MPO: a phone's JPEG with a second picture in it
    return "JPEG" if image.format == "MPO" else str(image.format)


def _check_cost(data: bytes, image: Image.Image) -> None:
    """Refuse a small file that would make the decoder visit its pixels many times over."""
    width, height = image.size
    covered = sum(
        (right - left) * (low - top)
        for _, (left, top, right, low), *_ in getattr(image, "tile", ())
    )
    if covered > _MOST_COVERED * width * height or containers.has_more_scans(data, _MOST_SCANS):
        raise BrokenImage(
            "the image is damaged",
            reason="truncated",
            got="its pixels are stored many times over",
            expected=f"at most {_MOST_SCANS} scans of a JPEG, tiles of a TIFF that cover it once",
            do="save it again",
        )


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


def _check_format(found: str, formats: Sequence[str]) -> None:
    if found not in formats:
        raise BrokenImage(
            "images of this format are not taken",
            reason="not_an_image",
            got=found,
            expected=f"one of {', '.join(formats)}",
            do="convert it",
        )


def _unidentified(data: bytes, formats: Sequence[str]) -> BrokenImage:
    if data.startswith(_SIGNATURES) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP"):
        return BrokenImage(
            "the image is truncated or damaged, or stores its colours in an unusual way",
            reason="truncated",
            got=f"{len(data)} bytes",
            do="save it again, with 8 bits a colour",
        )
    return BrokenImage(
        "the file is not an image that can be read",
        reason="not_an_image",
        got=f"{len(data)} bytes that begin {data[:12]!r}",
        expected=f"one of {', '.join(formats)}",
    )


def _upright(image: Image.Image) -> Image.Image:
    """Return RGB pixels, turned as EXIF says; damaged EXIF does not spoil good pixels."""
    rgb = _to_rgb(image)
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # EXIF is untrusted bytes too: struct.error, SyntaxError, ...
        turn = None
    if turn is not None:
        rgb = rgb.transpose(turn)
    # Pillow would write a GIF's comment into the JPEG of a thumbnail, or fail where it is too long
    rgb.info = {}
    return rgb


def _to_rgb(image: Image.Image) -> Image.Image:
    try:
        if image.mode.startswith(("I", "F")):
            image = levels.to_grey(image)
        elif image.mode == "La":  # premultiplied alpha: Pillow converts it in two steps only
            image = image.convert("LA")
        if image.has_transparency_data:
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            image = Image.alpha_composite(white, image.convert("RGBA"))
        return image if image.mode == "RGB" else image.convert("RGB")
    except ValueError as error:
        raise BrokenImage(
            "the image's colours cannot be read",
            reason="not_an_image",
            got=f"mode {image.mode}: {error}",
            do="convert it to RGB of 8 bits a colour",
        ) from error
