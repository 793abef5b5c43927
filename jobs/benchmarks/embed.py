"""Embedding: Ray Data with `compute.embed_workers` actors against a plain loop in this process, on the same files."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raycd.config import Config
from raycd.data.garments import CATEGORIES, draw, random_garment
from raycd.data.images import FORMATS
from raycd.embed import EmbedImages, frozen_encoder
from raycd.features import READABLE
from raycd.model.encoder import create
from raycd.runtime import cluster, embedding


def measure(config: Config, flags: argparse.Namespace) -> dict[str, Any]:
    """Images per second of both ways, from cold model to features in memory, and their ratio.

    The cluster is up before the clock starts; the actors, which load torch and the model, start while it runs.
    """
    with tempfile.TemporaryDirectory() as scratch, cluster.connected():
        paths = _photos(Path(flags.photos)) if flags.photos else _drawn(Path(scratch), flags.images, config)
        torch.manual_seed(0)
        encoder = Path(scratch) / "encoder"
        create(config.encoder.model_copy(update={"pretrained": ""})).save(encoder)

        began = time.perf_counter()
        plain = _plain_loop(paths, encoder, config)
        plain_rate = len(paths) / (time.perf_counter() - began)

        began = time.perf_counter()
        table = embedding.embed_images(paths, str(encoder), config)
        ray_rate = len(paths) / (time.perf_counter() - began)
    found = np.asarray(table["feature"].combine_chunks().flatten()).reshape(len(paths), -1)
    return {
        "images": len(paths),
        "readable": sum(status == READABLE for status in table["status"].to_pylist()),
        "encoder": config.encoder.name,
        "cores": os.cpu_count(),
        "largest difference of a feature": float(np.abs(found - plain).max()),
        "plain loop, images/s": plain_rate,
        "Ray Data, images/s": ray_rate,
        "ratio": ray_rate / plain_rate,
    }


def _plain_loop(paths: dict[str, str | None], encoder: Path, config: Config) -> np.ndarray:
    """What one would write without Ray: every core for torch, one batch after the other."""
    torch.set_num_threads(os.cpu_count() or 1)
    step = EmbedImages(frozen_encoder(encoder, config.embed.precision, "cpu"), config.data)
    keys, size = list(paths), config.embed.batch_size
    batches = [keys[first : first + size] for first in range(0, len(keys), size)]
    return np.concatenate([step({"key": b, "path": [paths[key] for key in b]})["feature"] for b in batches])


def _drawn(folder: Path, count: int, config: Config) -> dict[str, str | None]:
    rng = np.random.default_rng(0)
    paths: dict[str, str | None] = {}
    for number in range(count):
        path = folder / f"{number:06d}.jpg"
        garment = random_garment(rng, CATEGORIES[number % len(CATEGORIES)])
        draw(rng, garment, config.data.synthetic.size).save(path, quality=92)
        paths[path.stem] = str(path)
    return paths


def _photos(folder: Path) -> dict[str, str | None]:
    endings = {f".{name.lower()}" for name in (*FORMATS, "jpg", "tif")}
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings)
    return {str(path.relative_to(folder)): str(path) for path in found}
