"""The driver's memory while 20,000 and 1,000,000 cheap rows are embedded, mined and indexed.

Everything is real but the pictures (8 x 8 pixels, a thousand of them again and again, in Parquet
files) and the encoder (a linear map). Each step runs in a process of its own, the driver, on a Ray
of its own: its peak is what the system counts as resident at most (VmHWM).
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from PIL import Image
from torch import nn

from jobs.benchmarks.measuring import chosen, elsewhere, own_peak, timed
from raycd import mine as core
from raycd import progress
from raycd.config import Config, MineConfig
from raycd.data.preprocess import Preprocess
from raycd.errors import ConfigError
from raycd.features import shards
from raycd.features.stored import Stored
from raycd.model import fusion
from raycd.model.encoder import Encoder
from raycd.runtime import cluster, mining
from raycd.runtime.embed import embed_shards
from raycd.runtime.stages import bundle

SMALL, LARGE = 20_000, 1_000_000
DIM, SIDE, TRIPLETS = 16, 8, 2000
DISTINCT, FILE, GROUP = 1000, 50_000, 1000  # pictures; rows of a file and of its row groups


def measure(config: Config, flags: argparse.Namespace) -> dict[str, Any]:
    """Return the driver's peak and the time of each step for both sizes, and the peaks' ratio."""
    sizes = (SMALL, flags.images or LARGE)
    if sizes[1] <= SMALL:
        raise ConfigError(
            "--images is not the larger of two sizes", got=sizes[1], expected=f"more than {SMALL:,}"
        )
    rows: dict[str, Any] = {"dim": DIM, "triplets": TRIPLETS, "cores": os.cpu_count()}
    steps = {"embed": _embed, "mine": _mine, "index": _index}
    asked = {"embed", *chosen(flags.only, list(steps))}  # all read what embed writes
    steps = {name: work for name, work in steps.items() if name in asked}
    peaks: dict[str, list[float]] = {name: [] for name in steps}
    with tempfile.TemporaryDirectory() as temporary:
        for size in sizes:
            folder = Path(temporary, f"{size}")
            elsewhere(_draw, folder / "pictures", size)
            for name, work in steps.items():
                mebibytes, seconds = elsewhere(work, folder, size, config)
                peak = f"driver's peak {mebibytes:.1f} MiB"
                progress.say(f"{name} {size:,}: {peak}, {progress.duration(seconds)}")
                rows[f"{name} {size:,}: driver's peak, MiB"] = mebibytes
                rows[f"{name} {size:,}: s"] = seconds
                peaks[name].append(mebibytes)
    for name, (small, large) in peaks.items():
        rows[f"{name}: peak of {sizes[1]:,} : {sizes[0]:,}"] = large / small
    return rows


def _draw(folder: Path, size: int) -> None:
    """Write `size` pictures into Parquet files, as the datasets library has them."""
    rng = np.random.default_rng(0)
    pictures = [_png(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)) for _ in range(DISTINCT)]
    folder.mkdir(parents=True)
    for start in range(0, size, FILE):
        numbers = range(start, min(size, start + FILE))
        image = [{"bytes": pictures[n % DISTINCT], "path": f"{n:09d}.png"} for n in numbers]
        table = pa.table({"image": image})
        pq.write_table(table, folder / f"part-{start:09d}.parquet", row_group_size=GROUP)


def _png(pixels: Any) -> bytes:
    data = BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def _embed(folder: Path, size: int, config: Config) -> tuple[float, float]:
    with cluster.connected():
        stored, seconds = timed(
            lambda: embed_shards.embed_source(
                str(folder / "features"), str(folder / "pictures"), stand_in(), config
            )
        )
        assert stored.starts[-1] == size, "every picture has a feature"
        return own_peak(), seconds


def _mine(folder: Path, size: int, config: Config) -> tuple[float, float]:
    """Mine the images of as many triplets, among all images."""
    settings = MineConfig(neighbours=16, floor=-1, batch_size=config.mine.batch_size)
    rng = np.random.default_rng(0)
    reference_T, target_T = rng.integers(0, size, (2, TRIPLETS)).astype(np.int32)
    with cluster.connected():

        def work() -> pa.Table:
            stored = Stored.open(folder / "features")
            everything = np.arange(size, dtype=np.int32)
            queries = np.unique(np.concatenate([reference_T, target_T]))
            pools = [core.Pool("", everything, queries)]
            return mining.find_neighbours(stored, pools, settings, config.compute)

        found, seconds = timed(work)
        assert len(found) > TRIPLETS, "every image of a triplet has its neighbours"
        return own_peak(), seconds


def _index(folder: Path, size: int, config: Config) -> tuple[float, float]:
    """Write the bundle of all images."""
    with cluster.connected():
        build = ray.remote(num_cpus=config.compute.cpus_per_worker)(_build)
        indexed, seconds = timed(lambda: ray.get(build.remote(folder, config)))
        assert indexed == size, "every image is in the index"
        return own_peak(), seconds


def _build(folder: Path, config: Config) -> int:
    """Do what the task of the stage bundle does, of the table that the features are of."""
    ids = pq.read_table(folder / "features" / shards.ROWS, columns=["key"])["key"].to_pylist()
    count, encoder = len(ids), stand_in()
    head = fusion.HeadConfig("sum", DIM)
    manifest = bundle.write(
        str(folder / "bundle"),
        bundle.BundledModel(encoder, fusion.create(head), head),
        Stored.open(folder / "features"),
        bundle.GalleryRows(ids, [[]] * count, [None] * count, [{}] * count),
        config,
        {},
    )
    return manifest.index.size


class Letters:
    """A tokenizer that nobody asks for texts."""

    files: dict[str, bytes] = {}  # noqa: RUF012
    padding = 0

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.zeros(len(texts), 1, dtype=torch.int64)

    def truncates(self, text: str) -> bool:
        return False


class Linear(nn.Module):
    """An encoder that is a linear map of the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = nn.Linear(3 * SIDE * SIDE, DIM)

    def encode_image(self, images: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        found: torch.Tensor = self.visual(images.flatten(1))
        return found


def stand_in() -> Encoder:
    """Return the encoder, always the same."""
    torch.manual_seed(0)
    preprocess = Preprocess((SIDE, SIDE), (0.5,) * 3, (0.5,) * 3, resize_mode="squash")
    return Encoder(Linear(), Letters(), preprocess, {"embed_dim": DIM}).eval()
