import json
import pickle
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from raycd.data.images import REASONS, BrokenImage, decode, load, read_bytes
from raycd.data.preprocess import Preprocess, TargetPad
from raycd.errors import DataError

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def save(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise(width: int = 80, height: int = 60) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


def open_(data: bytes) -> Image.Image:
    return decode(data, max_pixels=1_000_000, min_side=8)


def reason(data: bytes, **limits: int) -> str:
    with pytest.raises(BrokenImage) as caught:
        decode(data, **{"max_pixels": 1_000_000, "min_side": 8, **limits})  # type: ignore[arg-type]  # formats is no limit
    return caught.value.reason


def pixel(image: Image.Image, x: int = 0, y: int = 0) -> Any:
    assert image.mode == "RGB"
    return image.getpixel((x, y))


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that announces its size and holds hardly any pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 64))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "JPEG", "WEBP", "GIF"])
def test_every_format_decodes_to_rgb(format: str) -> None:
    image = open_(save(Image.new("RGB", (20, 10), RED), format))
    assert (image.mode, image.size) == ("RGB", (20, 10))
    assert np.abs(np.asarray(image, np.int16) - RED).max() <= 3


@pytest.mark.parametrize("format", ["ICO", "PPM", "TGA"])
def test_other_formats_are_not_images(format: str) -> None:
    assert reason(save(Image.new("RGB", (16, 16)), format)) == "not_an_image"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty"),
        (b"<html>404 not found</html>", "not_an_image"),
        (b"\0" * 5000, "not_an_image"),
        (save(Image.new("RGB", (1, 1))), "too_small"),
        (save(Image.new("RGB", (7, 300))), "too_small"),
        (png_header(60_000, 60_000), "too_large"),
        (png_header(1001, 1000), "too_large"),
        (png_header(300, 300), "truncated"),
    ],
)
def test_broken_files_have_a_reason(data: bytes, expected: str) -> None:
    assert reason(data) == expected
    assert expected in REASONS


@pytest.mark.parametrize(
    ("data", "remedy"),
    [
        (png_header(1001, 1000), "make it smaller"),
        (save(Image.new("RGB", (7, 300))), "a larger one"),
    ],
)
def test_a_size_that_is_refused_has_a_remedy(data: bytes, remedy: str) -> None:
    with pytest.raises(BrokenImage, match=f"to do: .*{remedy}"):
        open_(data)


@pytest.mark.parametrize("data", [b"<html>", save(Image.new("RGB", (16, 16)), "TIFF")])
def test_of_formats_only_those_that_are_taken_are_named(data: bytes) -> None:
    with pytest.raises(BrokenImage, match=r"one of JPEG, PNG(\n|$)") as caught:
        decode(data, max_pixels=1000, min_side=8, formats=("JPEG", "PNG"))
    assert caught.value.reason == "not_an_image"


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_a_file_that_is_cut_off_is_truncated(format: str, share: float) -> None:
    data = save(noise(), format)
    assert reason(data[: int(len(data) * share)]) == "truncated"


def test_a_progressive_jpeg_that_is_cut_off_is_truncated() -> None:
    data = save(noise(), "JPEG", progressive=True)
    assert reason(data[: len(data) * 3 // 4]) == "truncated"


def test_pixels_damaged_inside_a_png_are_refused() -> None:
    data = bytearray(save(noise()))
    data[len(data) // 2] ^= 0xFF
    assert reason(bytes(data)) == "truncated"


def test_the_limits_are_inclusive() -> None:
    data = save(Image.new("RGB", (8, 100)))
    assert decode(data, max_pixels=800, min_side=8).size == (8, 100)
    assert reason(data, max_pixels=799) == "too_large"
    assert reason(data, min_side=9) == "too_small"


@pytest.mark.filterwarnings("error")
def test_pillows_bomb_warning_as_an_error_is_too_large() -> None:
    assert reason(png_header(10_000, 10_000), max_pixels=10**9) == "too_large"


def test_cmyk_is_converted() -> None:
    image = open_(save(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    assert np.abs(np.asarray(image, np.int16) - RED).max() <= 3


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_to_eight(format: str) -> None:
    levels = np.zeros((8, 8), np.uint16)
    levels[0, :4] = (65535, 32896, 257, 128)
    image = open_(save(Image.fromarray(levels), format))
    assert [pixel(image, x)[0] for x in range(5)] == [255, 128, 1, 0, 0]


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_grey_and_palette_images_are_converted(mode: str) -> None:
    assert pixel(open_(save(Image.new("RGB", (8, 8), WHITE).convert(mode)))) == WHITE


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_laid_over_white(format: str) -> None:
    image = Image.new("RGBA", (8, 8), (*BLACK, 0))
    image.putpixel((1, 0), (*BLUE, 255))
    image.putpixel((2, 0), (*BLACK, 128))
    read = open_(
        save(image, format, **({"lossless": True, "exact": True} if format == "WEBP" else {}))
    )
    assert [pixel(read, x) for x in range(3)] == [WHITE, BLUE, (127, 127, 127)]


def test_a_transparent_palette_colour_is_white() -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([*BLACK, *BLUE])
    image.putpixel((1, 0), 1)
    read = open_(save(image, "GIF", transparency=0))
    assert (pixel(read, 0), pixel(read, 1)) == (WHITE, BLUE)


def test_grey_with_alpha_is_laid_over_white() -> None:
    assert pixel(open_(save(Image.new("LA", (8, 8), (0, 0))))) == WHITE


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_gives_its_first_frame(format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    lossless = {"lossless": True} if format == "WEBP" else {}
    assert (
        pixel(open_(save(frames[0], format, save_all=True, append_images=frames[1:], **lossless)))
        == RED
    )


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize(
    ("orientation", "corner"), [(1, (0, 0)), (2, (1, 0)), (3, (1, 1)), (6, (1, 0)), (8, (0, 1))]
)
def test_exif_orientation_is_read(format: str, orientation: int, corner: tuple[int, int]) -> None:
    """The red quarter, stored top left, is in `corner` when the image is upright."""
    image = Image.new("RGB", (64, 32), BLACK)
    image.paste(RED, (0, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    read = open_(save(image, format, exif=exif))
    assert read.size == ((32, 64) if orientation >= 5 else (64, 32))
    at = [side // 4 + at * side // 2 for side, at in zip(read.size, corner, strict=True)]
    assert np.abs(np.subtract(pixel(read, *at), RED)).max() <= 8


def test_damaged_exif_does_not_spoil_good_pixels() -> None:
    data = save(Image.new("RGB", (16, 16), BLUE), exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert pixel(open_(data)) == BLUE


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    for path in (str(tmp_path / "no.jpg"), str(tmp_path), "memory://no/such.jpg", None):
        with pytest.raises(BrokenImage) as caught:
            load(path, max_pixels=1000, min_side=8)
        assert caught.value.reason == "missing"


def test_a_store_that_fails_is_no_broken_image() -> None:
    with pytest.raises(DataError) as caught:
        read_bytes("nosuchprotocol://bucket/a.jpg")
    assert not isinstance(caught.value, BrokenImage)


def test_load_reads_local_files_and_uris_and_names_broken_ones(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(save(Image.new("RGB", (9, 8), RED)))
    (tmp_path / "b.png").write_bytes(b"oops")
    assert pixel(load(str(tmp_path / "a.png"), max_pixels=1000, min_side=8)) == RED
    assert load(f"file://{tmp_path}/a.png", max_pixels=1000, min_side=8).size == (9, 8)
    with fsspec.open("memory://images/a.png", "wb") as file:
        file.write(save(Image.new("RGB", (9, 8))))
    assert load("memory://images/a.png", max_pixels=1000, min_side=8).size == (9, 8)
    with pytest.raises(BrokenImage, match=r"b\.png") as caught:
        load(str(tmp_path / "b.png"), max_pixels=1000, min_side=8)
    assert caught.value.reason == "not_an_image"


def test_a_broken_image_crosses_processes() -> None:
    error = BrokenImage("what", reason="empty", got=1)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.reason) == (BrokenImage, str(error), "empty")


@pytest.mark.parametrize(
    ("size", "padded"),
    [
        ((100, 200), (160, 200)),
        ((200, 100), (200, 160)),
        ((160, 200), (160, 200)),
        ((161, 200), (161, 200)),
        ((100, 125), (100, 125)),
        ((10, 101), (80, 101)),
    ],
)
def test_target_pad_brings_the_sides_to_the_ratio(
    size: tuple[int, int], padded: tuple[int, int]
) -> None:
    assert TargetPad(1.25)(Image.new("RGB", size)).size == padded


def test_target_pad_pads_with_zeros_on_both_sides() -> None:
    row = np.asarray(TargetPad(1.25)(Image.new("RGB", (100, 200), WHITE)))[0, :, 0]
    assert (row[:30].max(), row[30:130].min(), row[130:].max()) == (0, 255, 0)


@pytest.mark.parametrize("size", [(300, 200), (200, 260), (64, 64), (33, 97), (64, 70), (640, 481)])
@pytest.mark.parametrize("side", [64, 96])
def test_preprocessing_is_that_of_torchvision(size: tuple[int, int], side: int) -> None:
    image = noise(*size)
    steps: list[Callable[..., Any]] = [
        transforms.Resize(side, interpolation=InterpolationMode.BICUBIC),
        transforms.CenterCrop(side),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    expected = transforms.Compose(steps)(TargetPad(1.25)(image))
    preprocess = Preprocess((side, side), MEAN, STD, target_pad=1.25)
    pixels = preprocess(image)
    assert (pixels.shape, pixels.dtype) == ((side, side, 3), torch.uint8)
    tensor = preprocess.normalise(pixels[None])[0]
    assert (tensor.shape, tensor.dtype) == ((3, side, side), torch.float32)
    torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("target_pad", [1.25, 1e9])
@pytest.mark.parametrize("size", [(8, 65500), (65500, 8)])
def test_an_extreme_strip_stays_small(size: tuple[int, int], target_pad: float) -> None:
    preprocess = Preprocess((32, 32), MEAN, STD, target_pad=target_pad)
    assert preprocess(Image.new("RGB", size)).shape == (32, 32, 3)


@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess((64, 64), MEAN, STD, target_pad=1.25),
        Preprocess((48, 64), MEAN, STD, "bilinear", "longest", 7),
    ],
)
def test_preprocessing_survives_json_and_pickle(preprocess: Preprocess) -> None:
    again = Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict())))
    assert again == preprocess == pickle.loads(pickle.dumps(preprocess))
    image = noise()
    assert torch.equal(again(image), preprocess(image))


@pytest.mark.parametrize(
    "change", [{"size": 0}, {"target_pad": 0.5}, {"mean": [0.5]}, {"std": [1, 1, 0]}, {"size": "x"}]
)
def test_impossible_preprocessing_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="the preprocessing cannot be read"):
        Preprocess.from_dict(Preprocess((64, 64), MEAN, STD, target_pad=1.25).to_dict() | change)
    with pytest.raises(DataError, match="the preprocessing cannot be read"):
        Preprocess.from_dict({})
