"""The whole line on this machine's device, through Ray: what a GPU has to do from data to answers.

Parts, of which --only takes some:

- demo: jobs/train.py on the built-in demo, from pre-training to its bundle.
- sweep: tune/sweep.py on it, eight trials that share the GPU.
- service: serve/app.py with its bundle and a replica on the GPU, 200 queries one after the other
  and as many by 16 clients; with CUDA graphs, too.
- encoders: stage 1 and embedding of the data set that the settings name, with RN50x4 and ViT-B-16
  of random weights.

The rows of a part are printed as soon as it is done.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from jobs.benchmarks.measuring import chosen, elsewhere, exit_code, timed
from jobs.benchmarks.rates import Work, product_rate, shares
from jobs.benchmarks.serving.servers import ROOT, service
from raycd import progress
from raycd.client import Client
from raycd.config import Config
from raycd.errors import ConfigError, RunError
from raycd.model.encoder import create
from raycd.run import RECORD
from raycd.runtime import cluster, pipeline
from tune.journal import Journal

PARTS = ("demo", "sweep", "service", "encoders")
ENCODERS = ("RN50x4", "ViT-B-16")
TRIALS, QUERIES, CLIENTS = 8, 200, 16
EPOCHS = 2  # of stage 1, the first of which warms up
LINES = 15  # of the log of a command that failed

Rows = dict[str, Any]


def measure(config: Config, flags: argparse.Namespace) -> Rows:
    """Return the rows of all parts.

    Raises RunError where parts have failed, after all, and ConfigError where one lacks what it
    works on.
    """
    parts = chosen(flags.only, PARTS)
    if "demo" not in parts and not {"sweep", "service"}.isdisjoint(parts):
        what = "sweep and service work on the run that demo makes"
        raise ConfigError(what, got=f"--only {flags.only}", do="name demo, too")
    on_gpu = config.compute.device != "cpu" and torch.cuda.is_available()
    # This process leaves the card to the others
    rate = elsewhere(product_rate, "cuda" if on_gpu else "cpu")
    rows: Rows = {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "cores": os.cpu_count(),
        "a large product: TFLOP/s": rate / 1e12,
    }
    failed = []
    with tempfile.TemporaryDirectory(prefix="raycd-") as name:
        line = _Line(config, Path(name), rate, on_gpu=on_gpu)
        for part in parts:
            try:
                found, seconds = timed(getattr(line, part))
            except Exception as error:  # what else a card shows is worth its time
                failed.append(part)
                progress.say(f"{part} failed: {error}")
                continue
            rows |= found | {f"{part}: s": seconds}
            progress.say("\n".join(f"{key}: {value}" for key, value in found.items()))
    if failed:
        raise RunError("parts of the line failed", got=", ".join(failed), do="read what they said")
    return rows


class _Line:
    """The parts, each a method that returns its rows; the later ones need what `demo` leaves."""

    def __init__(self, config: Config, scratch: Path, rate: float, *, on_gpu: bool) -> None:
        self.config, self.scratch, self.rate, self.on_gpu = config, scratch, rate, on_gpu
        self.demo_run = scratch / "runs" / "demo"

    def demo(self) -> Rows:
        self._command("jobs/train.py")
        rows: Rows = {}
        for stage in pipeline.STAGES:
            file = self.demo_run / stage.name / RECORD
            if file.exists():
                record = json.loads(file.read_text(encoding="utf-8"))
                rows[f"demo, {stage.name}: s"] = record["seconds"]
                rows |= _training(f"demo, {stage.name}", record)
        return rows

    def sweep(self) -> Rows:
        # Two seeds at the end: what is measured are the trials
        few = ["--tune.seeds=2", "--tune.finalists=1", "--tune.final_seeds=1"]
        self._command("tune/sweep.py", f"--samples={TRIALS}", *few)
        trials = Journal(f"{self.demo_run}-sweep", str(self.demo_run)).trials()
        ended = Counter(trial["status"] for trial in trials)
        rows = {f"sweep, trials {status}": count for status, count in ended.items()}
        return rows | {"sweep, a trial: s": median(trial["seconds"] for trial in trials)}

    def service(self) -> Rows:
        rows = self._served("service", [f"--gpus={self.on_gpu:d}"])
        if self.on_gpu:
            fast = ["--gpus=1", "--precision=bf16"]
            rows |= self._served("service, bf16", fast)
            rows |= self._served("service, bf16, CUDA graphs", [*fast, "--cuda_graphs=true"])
        return rows

    def encoders(self) -> Rows:
        rows: Rows = {}
        for name in ENCODERS:
            rows |= elsewhere(_encoder, self.config, name, self.scratch, self.rate)
        return rows

    def _command(self, program: str, *options: str) -> None:
        """Run one of the project's programs on the demo. Raises RunError where it fails."""
        log = self.scratch / f"{Path(program).stem}.log"
        own = ["--preset=demo", f"--runs={self.demo_run.parent}"]
        own += [f"--tracking.uri=sqlite:///{self.scratch}/mlflow.db"]
        own += [f"--compute.device={self.config.compute.device}", *options]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with log.open("w", encoding="utf-8") as output:
            command = [sys.executable, str(ROOT / program), *own]
            code = exit_code(command, stdout=output, stderr=output, env=environment)
        if code:
            last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LINES:]
            raise RunError(f"{program} failed", got="\n            ".join(last))

    def _served(self, name: str, options: list[str]) -> Rows:
        """Ask the service of the demo's bundle, one client and several."""
        rng = np.random.default_rng(0)
        asked = [(_picture(rng), f"is {number} cm longer") for number in range(QUERIES)]
        options = [*options, "--gallery=none"]
        with service(self.demo_run / "bundle", "default", options, self.scratch) as port:
            url = f"http://127.0.0.1:{port}"

            def ask(query: tuple[bytes, str]) -> float:
                with Client(url) as client:
                    return timed(lambda: client.search(image=query[0], text=query[1]))[1]

            one = [ask(query) for query in asked]
            with ThreadPoolExecutor(CLIENTS) as clients:
                _, seconds = timed(lambda: list(clients.map(ask, reversed(asked))))
        rows = {f"{name}, 1 client: p50, ms": 1000 * median(one)}
        return rows | {f"{name}, {CLIENTS} clients: answers/s": QUERIES / seconds}


def _encoder(config: Config, name: str, scratch: Path, rate: float) -> Rows:
    """Train stage 1 with an encoder of random weights, and embed with what comes of it."""
    encoder = create(config.encoder.model_copy(update={"name": name, "pretrained": ""}))
    encoder.save(scratch / name)
    changes = {
        "name": name,
        "runs": str(scratch / "runs"),
        "encoder": config.encoder.model_copy(update={"pretrained": str(scratch / name)}),
        "stage1": config.stage1.model_copy(update={"epochs": EPOCHS, "select_on": "last"}),
        "tracking": config.tracking.model_copy(update={"enabled": False}),
    }
    with cluster.connected():
        run = pipeline.run(config.model_copy(update=changes), until="embed").run
    trained, embedded = (pipeline.recorded(run, stage) for stage in ("stage1", "embed"))
    work, counts = Work.of(encoder), embedded["counts"]
    rows = _training(name, trained)
    rows |= shares(name, rows[f"{name}: triplets/s"] * work.triplet, rate)
    rows[f"{name}, the stage embed: s"] = embedded["seconds"]
    done = counts["images"] * work.image + counts["texts"] * work.text
    return rows | shares(f"{name}, the stage embed", done / embedded["seconds"], rate)


def _training(name: str, record: Mapping[str, Any]) -> Rows:
    """Return speed and waiting of a training's last epoch, where the stage has trained."""
    if not record.get("history"):
        return {}
    last = record["history"][-1]
    return {
        f"{name}: precision": record.get("precision", ""),
        f"{name}: triplets/s": last["rows_per_second"],
        f"{name}: share of waiting (at most 0.1)": last["waited"],
    }


def _picture(rng: np.random.Generator) -> bytes:
    file = BytesIO()
    pixels = rng.integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()
