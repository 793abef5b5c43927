"""Images that reach a training worker: decoded by itself, by a process beside, by the cluster.

Who reads them does nothing else, so this is what a GPU could be fed with. On a machine of few CPUs
all ways share these; the rates say what each costs beside the decoding itself.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.benchmarks.embed import Paths, pictures
from raycd.config import Config
from raycd.data.pixels import PixelCache
from raycd.model.encoder import create
from raycd.model.threads import usable_cpus
from raycd.runtime import cluster
from raycd.runtime.train.decoding import ClusterLoader
from raycd.train.triplets import Batches, Loader, TripletReader, Work

WARM_UP = 2  # batches


def measure(config: Config, flags: argparse.Namespace) -> dict[str, Any]:
    """Return images a second of each way, and the seconds before its first batch of an epoch."""
    with tempfile.TemporaryDirectory() as scratch, cluster.connected():
        paths = pictures(config, flags, Path(scratch))
        reader = _reader(paths, config)
        numbers, size = range(len(paths)), 2 * config.stage1.batch_size
        work = [Work.of_images(numbers[at : at + size]) for at in range(0, len(paths), size)]
        ways: dict[str, Batches] = {
            "the worker": Loader(reader, 0, pin=False),
            "a process": Loader(reader, 1, pin=False),
            "the cluster": ClusterLoader(reader, config.compute),
        }
        rows: dict[str, Any] = {
            "images": len(paths),
            "pixels of an image": "x".join(map(str, reader.pixels.preprocess.size)),
            "cores": usable_cpus(),
        }
        for way, loader in ways.items():
            list(loader.batches(work[:WARM_UP]))  # processes start, and stay
            first, rate = _rate(loader, work)
            rows[f"{way}: images/s"] = rate
            rows[f"{way}: seconds before the first batch"] = first
    return rows


def _reader(paths: Paths, config: Config) -> TripletReader:
    encoder = create(config.encoder.model_copy(update={"pretrained": ""}))
    known = {name: path for name, path in paths.items() if path is not None}
    return TripletReader([], PixelCache(known, encoder.preprocess, config.data, 0), None)


def _rate(loader: Batches, work: Sequence[Work]) -> tuple[float, float]:
    """Return the seconds before the first batch, and the images a second after it."""
    began, counts, first = time.perf_counter(), [], 0.0
    for batch in loader.batches(work):
        first = first or time.perf_counter() - began
        counts.append(len(batch.targets))
    seconds = time.perf_counter() - began - first
    return first, sum(counts[1:]) / seconds
