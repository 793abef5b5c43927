"""Time and memory of each stage of a run, from its data set to its bundle.

A data set of Fashion-IQ's form may have its annotations alone: stand-ins for its images, drawn
garments of 64 x 64 pixels, are put into a copy of it then.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jobs.benchmarks.measuring import elsewhere, own_peak, peak, reset_own_peak
from raycd import progress
from raycd.config import Config, cli
from raycd.data.demo.drawing import draw
from raycd.data.demo.garments import random_garment
from raycd.errors import ConfigError
from raycd.runtime import cluster, pipeline
from raycd.runtime.stages import reading

EVERY_S = 0.5  # memory is looked at, which takes 10 ms of a core for each of some twenty processes
ANNOTATIONS = ("captions", "image_splits")
IMAGES = "images"


def measure(config: Config, flags: argparse.Namespace) -> dict[str, Any]:
    """Return seconds and memory of each stage.

    Memory is the peak of all processes, each page once, and the driver's resident peak.
    """
    with tempfile.TemporaryDirectory(prefix="raycd-") as temporary:
        root = cli.local("--data.root", config.data.root).expanduser()
        rows: dict[str, Any] = {"cores": os.cpu_count()}
        if config.data.format == "fashioniq" and not (root / IMAGES).is_dir():
            root, rows["images drawn"] = _with_images(root, Path(temporary, "data"))
        data = config.data.model_copy(update={"root": str(root)})
        changes = {"data": data, "name": "run", "runs": str(Path(temporary, "runs"))}
        return rows | elsewhere(_run, config.model_copy(update=changes))


def _with_images(root: Path, copy: Path) -> tuple[Path, int]:
    """Return a copy of Fashion-IQ's annotations with drawn images, and the number of them."""
    for folder in ANNOTATIONS:
        if not (root / folder).is_dir():
            raise ConfigError(
                "there are no annotations of Fashion-IQ",
                got=f"data.root {root}",
                expected=f"a folder with {' and '.join(ANNOTATIONS)}",
                do="give --data.root",
            )
        shutil.copytree(root / folder, copy / folder)
    (copy / IMAGES).mkdir()
    named = dict(_named(copy))
    with progress.Bar("draw images", total=len(named), unit="images") as bar:
        for image_id, category in named.items():
            digest = hashlib.sha256(image_id.encode()).digest()
            rng = np.random.default_rng(list(digest[:8]))
            picture = draw(rng, random_garment(rng, category), 64)
            picture.save(copy / IMAGES / f"{image_id}.jpg", quality=92)
            bar.advance(1)
    return copy, len(named)


def _named(root: Path) -> Iterator[tuple[str, str]]:
    """Yield the images of the splits that a run reads, with their category."""
    for split in ("train", "val"):
        for file in sorted((root / "image_splits").glob(f"split.*.{split}.json")):
            category = file.name.split(".")[1]
            for image_id in json.loads(file.read_text()):
                yield image_id, category


def _run(config: Config) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    dataset = reading.unless_drawn(config)
    config = reading.fitted(config, dataset)
    with cluster.connected():
        for stage in pipeline.stages_of(config, dataset):
            reset_own_peak()

            def work(until: str = stage.name) -> None:
                pipeline.run(config, until=until)

            _, mebibytes = peak(work, every_s=EVERY_S, whole=True)
            record = pipeline.recorded(pipeline.run_folder(config), stage.name)
            rows[f"{stage.name}: s"] = record["seconds"]
            rows[f"{stage.name}: all processes, MiB"] = mebibytes
            rows[f"{stage.name}: driver, MiB"] = own_peak()
    return rows
