"""JPEGs that are decoded at a reduced scale, where that is enough for an encoder's pixels."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raycd.config import DataConfig
from raycd.data import parts
from raycd.data.images import BrokenImage, decode, load
from raycd.data.pixels import PixelCache
from raycd.data.preprocess import Preprocess
from raycd.model.embed import DecodeImages


def noisy_jpeg(width: int, height: int, **saving: Any) -> bytes:
    """Return the bytes of a smooth picture with some noise, as photographs are."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    pixels = (smooth + rng.integers(-8, 9, smooth.shape)).clip(0, 255).astype(np.uint8)
    data = BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=90, **saving)
    return data.getvalue()


@pytest.mark.parametrize(
    ("enough", "size"),
    [(0, (640, 480)), (60, (80, 60)), (64, (160, 120)), (128, (320, 240)), (300, (640, 480))],
)
def test_a_jpeg_is_decoded_at_the_least_scale_that_is_enough(
    enough: int, size: tuple[int, int]
) -> None:
    data = noisy_jpeg(640, 480)
    assert decode(data, enough=enough).size == size


def test_pixels_of_a_reduced_scale_are_nearly_those_of_the_whole(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # Orientation
    path = tmp_path / "a.jpg"
    path.write_bytes(noisy_jpeg(640, 480, exif=turned))
    whole = Preprocess((56, 56), (0.0,) * 3, (1.0,) * 3, target_pad=1.25)
    reduced = Preprocess.from_dict(replace(whole, reduced=True).to_dict())
    assert (whole.enough, reduced.enough) == (0, 112)
    full, less = (load(str(path), enough=one.enough) for one in (whole, reduced))
    assert (full.size, less.size) == ((480, 640), (120, 160))
    difference = (whole(full).float() - reduced(less).float()).abs()
    assert difference.mean() < 1
    assert difference.max() < 16
    box = parts.dilated(parts.Box(100, 100, 60, 60))  # in pixels of the whole
    assert load(f"{path}{box}", enough=112).size == load(f"{path}{box}").size


def test_training_embedding_and_service_read_the_same_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(noisy_jpeg(640, 480))
    whole = Preprocess((56, 56), (0.0,) * 3, (1.0,) * 3, target_pad=1.25)
    reduced = replace(whole, reduced=True)
    trained_on = PixelCache({"a": str(path)}, reduced, DataConfig(), "auto").one("a").numpy()
    embed = DecodeImages(reduced.to_dict(), DataConfig())
    [embedded] = embed({"key": ["a"], "path": [str(path)]})["pixels"]
    served = reduced(decode(path.read_bytes(), enough=reduced.enough)).numpy()
    assert np.array_equal(trained_on, embedded)
    assert np.array_equal(embedded, served)
    assert not np.array_equal(served, whole(load(str(path))).numpy())


def test_a_jpeg_that_is_cut_off_is_refused_at_every_scale() -> None:
    data = noisy_jpeg(640, 480)
    with pytest.raises(BrokenImage, match="truncated"):
        decode(data[: len(data) // 2], enough=64)
    with pytest.raises(BrokenImage, match="too large"):
        decode(data, max_pixels=640 * 480 - 1, enough=64)
