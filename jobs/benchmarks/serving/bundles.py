"""The bundles that both sides serve, each with a gallery of 20,000: the demo's, and one of
ViT-B-32's size.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from raycd import bundle
from raycd.config import Config, EncoderConfig
from raycd.data.demo.garments import CATEGORIES
from raycd.model import encoder, fusion
from raycd.model.fusion import HeadConfig

GALLERY = 20_000
SPREAD = 0.3  # of the noise around a real feature, in its own standard deviations


def filled(source: Path, folder: Path, size: int = GALLERY) -> None:
    """Write the bundle `source` into `folder` with `size` images: its own, then noise around their
    features.
    """
    loaded = bundle.load(source)
    gallery = bundle.read_gallery(source)
    own = bundle.gallery_features(gallery)
    rows = np.arange(size) % len(own)
    features = own[rows]
    noise = np.random.default_rng(0).standard_normal(features.shape, dtype=np.float32)
    features[len(own) :] += SPREAD * own.std(axis=0) * noise[len(own) :]
    gallery = gallery.take(rows)
    columns = {"image_id": pa.array(image_ids(size)), "feature": _column(features)}
    for name, column in columns.items():
        gallery = gallery.set_column(gallery.schema.get_field_index(name), name, column)
    parts = (
        loaded.encoder,
        loaded.head,
        loaded.head_config,
        gallery,
        loaded.config,
        loaded.manifest.metrics,
    )
    bundle.write(folder, *parts, example_texts=loaded.manifest.example_texts)


def image_ids(size: int = GALLERY) -> list[str]:
    """The ids of every gallery here."""
    return [f"G{number:06d}" for number in range(size)]


def random(name: str, folder: Path, size: int = GALLERY, *, configs: str = "") -> None:
    """Write a bundle of random weights with the head that is default.

    `name` is an architecture of open_clip's, or of a file in `configs`.
    """
    torch.manual_seed(0)
    config = Config(preset="demo", encoder=EncoderConfig(name=name, pretrained="", configs=configs))
    clip = encoder.create(config.encoder)
    settings = HeadConfig.of(config.stage2, clip.dim)
    features = np.random.default_rng(0).standard_normal((size, clip.dim), dtype=np.float32)
    categories = [[CATEGORIES[number % len(CATEGORIES)]] for number in range(size)]
    gallery = bundle.gallery_table(
        image_ids(size), categories, [None] * size, features, clip.fingerprint()
    )
    bundle.write(folder, clip, fusion.create(settings).eval(), settings, gallery, config, {})


def _column(features: NDArray[np.float32]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), features.shape[1])
