"""Preprocessing as open_clip describes it: the same pixels and the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from raycd.data.preprocess import Interpolation, Preprocess, ResizeMode
from raycd.errors import ConfigError, DataError

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
SIZES = [(90, 90), (161, 47), (47, 161), (8, 8), (32, 32), (64, 33), (130, 9), (9, 130)]
MODES: list[ResizeMode] = ["shortest", "longest", "squash"]
INTERPOLATIONS: list[Interpolation] = ["bicubic", "bilinear"]


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def described(**changes: Any) -> dict[str, Any]:
    return Preprocess((32, 32), MEAN, STD).open_clip() | changes


@pytest.mark.parametrize("size", [[32, 32], [32, 48], [50, 24]])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_pixels_and_numbers_are_those_of_open_clips_own_transform(
    size: list[int], mode: ResizeMode, interpolation: Interpolation
) -> None:
    settings = described(size=size, resize_mode=mode, interpolation=interpolation, fill_color=7)
    theirs = image_transform_v2(PreprocessCfg(**settings), is_train=False)
    bare = image_transform_v2(
        PreprocessCfg(**settings | {"mean": (0, 0, 0), "std": (1, 1, 1)}), is_train=False
    )
    ours = Preprocess.of_open_clip(settings)
    for width, height in SIZES:
        image = noise(width, height)
        pixels = ours(image)
        assert (pixels.dtype, list(pixels.shape)) == (torch.uint8, [*size, 3])
        assert torch.equal(pixels, bare(image).mul(255).round().byte().permute(1, 2, 0))
        assert torch.equal(ours.normalise(pixels[None])[0], theirs(image))


def test_every_kind_of_size_and_mean_that_open_clip_takes_is_read() -> None:
    for size in (32, [32], (32, 32), [32, 32]):
        assert Preprocess.of_open_clip(described(size=size)).size == (32, 32)
    read = Preprocess.of_open_clip(described(mean=0.5, std=0.25, interpolation="random"))
    assert (read.mean, read.std, read.interpolation) == ((0.5,) * 3, (0.25,) * 3, "bicubic")


def test_all_pretrained_tags_of_open_clip_are_described_in_words_that_are_read() -> None:
    seen = set()
    for name, tag in open_clip.list_pretrained():
        tagged = open_clip.get_pretrained_cfg(name, tag)
        settings = described(**{key: tagged[key] for key in tagged if key in described()})
        read = Preprocess.of_open_clip(settings)
        assert read.open_clip() == {**settings, "mean": [*read.mean], "std": [*read.std]}
        seen.add((read.resize_mode, read.interpolation))
    assert {("shortest", "bicubic"), ("squash", "bicubic"), ("squash", "bilinear")} <= seen


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("turned", [False, True])
def test_of_an_extreme_strip_the_middle_is_taken(mode: ResizeMode, turned: bool) -> None:
    strip = Image.new("RGB", (65500, 8))
    strip.paste((255, 255, 255), (32000, 0, 33500, 8))
    image = strip.transpose(Image.Transpose.ROTATE_90) if turned else strip
    pixels = Preprocess((32, 24), MEAN, STD, resize_mode=mode)(image)
    assert pixels.shape == (32, 24, 3)
    assert pixels.max() == 255 if mode != "squash" else pixels.max() > 0


@pytest.mark.parametrize(
    "change",
    [
        {"size": 0},
        {"size": [32, 32, 32]},
        {"size": None},
        {"std": (1, 1, 0)},
        {"mean": (1, 1)},
        {"interpolation": "nearest"},
        {"resize_mode": "stretch"},
        {"fill_color": 256},
        {"fill_color": "black"},
    ],
)
def test_what_open_clip_would_not_take_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="the preprocessing cannot be read"):
        Preprocess.of_open_clip(described(**change))


def test_target_pad_keeps_the_encoders_size_and_numbers_and_replaces_the_rest() -> None:
    own = Preprocess((32, 32), MEAN, STD, "bilinear", "squash", 7)
    padded = own.with_target_pad(1.25)
    assert padded == Preprocess((32, 32), MEAN, STD, target_pad=1.25)
    assert padded.open_clip()["target_pad"] == 1.25


def test_target_pad_of_pixels_that_are_not_square_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"32 x 48 pixels(.|\n)*encoder\.preprocess auto"):
        Preprocess((32, 48), MEAN, STD).with_target_pad(1.25)
