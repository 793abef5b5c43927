"""Embedding: Ray Data's actors against a plain loop in this process, on the same files.

Texts of a search, too: read to their ends against the whole context.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from jobs.benchmarks.measuring import on_cpus, timed
from raycd.config import Config
from raycd.data.demo.drawing import draw
from raycd.data.demo.garments import CATEGORIES, random_garment
from raycd.data.demo.wording import compare
from raycd.data.images import FORMATS
from raycd.errors import ConfigError
from raycd.features import readable, vectors
from raycd.features.stored import Stored
from raycd.model.embed import EmbedImages, frozen
from raycd.model.encoder import Encoder, create
from raycd.model.threads import usable_cpus
from raycd.runtime import cluster
from raycd.runtime.embed import embed_shards

WARM_UP = 256  # images that each way embeds before its clock starts
TEXTS = {1: 20, 64: 3}  # texts of a batch -> rounds, each way by turns

Paths = dict[str, str | None]


def measure(config: Config, flags: argparse.Namespace) -> dict[str, Any]:
    """Return images per second of both ways, from paths to features, and their ratio.

    Ray Data's way has them in shards on the disk in the end, as a run has. Both ways are warm: this
    process and Ray's workers have imported torch and embedded a few images. What a first use costs,
    when the workers still have to import it, has its own row.
    """
    config = on_cpus(config)
    with tempfile.TemporaryDirectory() as scratch, cluster.connected():
        paths = pictures(config, flags, Path(scratch))
        torch.manual_seed(0)
        encoder = create(config.encoder.model_copy(update={"pretrained": ""}))
        first = dict(list(paths.items())[:WARM_UP])

        def ray(name: str, paths: Paths) -> Stored:
            table = pa.table({"key": list(paths), "path": list(paths.values())})
            folder = str(Path(scratch, name))
            return embed_shards.embed_table(folder, "images", table, encoder, config)

        _, cold = timed(lambda: ray("first", first))
        stored, ray_seconds = timed(lambda: ray("all", paths))
        torch.set_num_threads(usable_cpus())
        _plain_loop(first, encoder, config)
        plain, plain_seconds = timed(lambda: _plain_loop(paths, encoder, config))
        texts = _texts(encoder)
        table = pa.concat_tables(stored.blocks())
    found = vectors(table)
    return {
        "images": len(paths),
        "readable": len(readable(table)),
        "encoder": config.encoder.name,
        "cores": usable_cpus(),
        "largest difference of a feature": float(np.abs(found - plain).max()),
        f"first use: {len(first)} images by Ray Data, s": cold,
        "plain loop, images/s": len(paths) / plain_seconds,
        "Ray Data, images/s": len(paths) / ray_seconds,
        "ratio": plain_seconds / ray_seconds,
    } | texts


@torch.inference_mode()
def _texts(encoder: Encoder) -> dict[str, float]:
    """Return how long texts take, in milliseconds, and how many times as long whole ones do."""
    rng, rows = np.random.default_rng(0), dict[str, float]()
    for count, rounds in TEXTS.items():
        garments = [random_garment(rng, CATEGORIES[0]) for _ in range(count + 1)]
        texts = [compare(rng, *pair)[0] for pair in pairwise(garments)]
        tokens = encoder.tokenize(texts)
        took: dict[bool, list[float]] = {True: [], False: []}
        for number in range(-1, rounds):
            for whole, seconds in took.items():
                _, passed = timed(partial(encoder.encode_tokens, tokens, whole=whole))
                seconds += [passed] if number >= 0 else []  # the first warms up
        rows[f"texts, {count} at a time, ms"] = 1000 * median(took[False])
        rows[f"texts, {count} at a time: whole / read to their ends"] = median(took[True]) / median(
            took[False]
        )
    return rows


def _plain_loop(paths: Paths, encoder: Encoder, config: Config) -> NDArray[np.float32]:
    """Embed as one would write it without Ray: every core for torch, one batch after the other."""
    step = EmbedImages(frozen(encoder, config.embed.precision, "cpu"), config.data)
    keys, size = list(paths), config.embed.batch_size
    batches = [keys[first : first + size] for first in range(0, len(keys), size)]
    done = [step({"key": batch, "path": [paths[key] for key in batch]}) for batch in batches]
    return np.concatenate([batch["feature"] for batch in done])


def pictures(config: Config, flags: argparse.Namespace, folder: Path) -> Paths:
    """Return the photographs that --photos names, or draw images into `folder`.

    Raises ConfigError where there are no photographs.
    """
    if flags.photos:
        return _photographs(Path(flags.photos))
    return _drawn(folder, flags.images or 20_000, config)


def _drawn(folder: Path, count: int, config: Config) -> Paths:
    rng, names = np.random.default_rng(0), [f"{number:06d}" for number in range(count)]
    for number, name in enumerate(names):
        garment = random_garment(rng, CATEGORIES[number % len(CATEGORIES)])
        picture = draw(rng, garment, config.data.synthetic.size)
        picture.save(folder / f"{name}.jpg", quality=92)
    return {name: str(folder / f"{name}.jpg") for name in names}


def _photographs(folder: Path) -> Paths:
    endings = {f".{name.lower()}" for name in (*FORMATS, "jpg", "tif")}
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings)
    if not found:
        raise ConfigError(
            "there are no photographs", got=f"--photos {folder}", expected="a folder of pictures"
        )
    return {str(path.relative_to(folder)): str(path) for path in found}
