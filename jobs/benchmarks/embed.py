"""Embedding: Ray Data with `compute.embed_workers` actors against a plain loop in this process, on
the same files.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from raycd.config import Config
from raycd.data.demo.drawing import draw
from raycd.data.demo.garments import CATEGORIES, random_garment
from raycd.data.images import FORMATS
from raycd.features import READABLE
from raycd.model.embed import EmbedImages, frozen
from raycd.model.encoder import Encoder, create
from raycd.runtime import cluster, embedding

Result = TypeVar("Result")

WARM_UP = 256  # images that each way embeds before its clock starts


def measure(config: Config, flags: argparse.Namespace) -> dict[str, Any]:
    """Images per second of both ways, from paths to features in memory, and their ratio.

    Both ways are warm: this process and Ray's workers have imported torch and embedded a few
    images. What a first use costs, when the workers still have to import it, is told apart.
    """
    with tempfile.TemporaryDirectory() as scratch, cluster.connected():
        paths = (
            _photos(Path(flags.photos))
            if flags.photos
            else _drawn(Path(scratch), flags.images or 20_000, config)
        )
        torch.manual_seed(0)
        encoder = create(config.encoder.model_copy(update={"pretrained": ""}))
        first = dict(list(paths.items())[:WARM_UP])

        _, cold = _timed(lambda: embedding.embed_images(first, encoder, config))
        table, ray_seconds = _timed(lambda: embedding.embed_images(paths, encoder, config))
        torch.set_num_threads(os.cpu_count() or 1)
        _plain_loop(first, encoder, config)
        plain, plain_seconds = _timed(lambda: _plain_loop(paths, encoder, config))
    found = np.asarray(table["feature"].combine_chunks().flatten()).reshape(len(paths), -1)
    return {
        "images": len(paths),
        "readable": sum(status == READABLE for status in table["status"].to_pylist()),
        "encoder": config.encoder.name,
        "cores": os.cpu_count(),
        "largest difference of a feature": float(np.abs(found - plain).max()),
        f"first use: {len(first)} images by Ray Data, s": cold,
        "plain loop, images/s": len(paths) / plain_seconds,
        "Ray Data, images/s": len(paths) / ray_seconds,
        "ratio": plain_seconds / ray_seconds,
    }


def _timed(work: Callable[[], Result]) -> tuple[Result, float]:
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began


def _plain_loop(
    paths: dict[str, str | None], encoder: Encoder, config: Config
) -> NDArray[np.float32]:
    """What one would write without Ray: every core for torch, one batch after the other."""
    step = EmbedImages(frozen(encoder, config.embed.precision, "cpu"), config.data)
    keys, size = list(paths), config.embed.batch_size
    batches = [keys[first : first + size] for first in range(0, len(keys), size)]
    return np.concatenate(
        [step({"key": b, "path": [paths[key] for key in b]})["feature"] for b in batches]
    )


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
