"""The whole line on this machine's device, through Ray: what a GPU has to do from data to answers.

Parts, of which --only takes some:

- demo: jobs/train.py on the built-in demo, from pre-training to its bundle.
- sweep: tune/sweep.py on it, eight trials that share the GPU.
- service: serve/app.py with its bundle and a replica on the GPU, 200 queries one after the other
  and as many by 16 clients; with the index there, in bf16 and with CUDA graphs, too.
- encoders: stage 1 and embedding of the data set that the settings name, with RN50x4 and ViT-B-16
  of random weights.

Each row is printed as soon as it is there; a part that fails has a row, and those of the others are
measured.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from jobs.benchmarks.measuring import chosen, elsewhere, exit_code, in_parts, timed
from jobs.benchmarks.rates import Work, product_rate, shares
from jobs.benchmarks.serving.servers import ROOT, service
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
    """Return the rows of all parts. Raises ConfigError where one lacks what it works on."""
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
    with tempfile.TemporaryDirectory(prefix="raycd-") as name:
        line = _Line(config, Path(name), rate, on_gpu=on_gpu)
        return rows | in_parts(parts, lambda part: getattr(line, part)())


class _Line:
    """The parts, each a method that yields rows; `sweep` and `service` need what `demo` leaves."""

    def __init__(self, config: Config, scratch: Path, rate: float, *, on_gpu: bool) -> None:
        self.config, self.scratch, self.rate, self.on_gpu = config, scratch, rate, on_gpu
        self.demo_run = scratch / "runs" / "demo"

    def demo(self) -> Iterator[Rows]:
        self._command("jobs/train.py")
        rows: Rows = {}
        for stage in pipeline.STAGES:
            file = self.demo_run / stage.name / RECORD
            if file.exists():
                record = json.loads(file.read_text(encoding="utf-8"))
                rows[f"demo, {stage.name}: s"] = record["seconds"]
                rows |= _training(f"demo, {stage.name}", record)
        yield rows

    def sweep(self) -> Iterator[Rows]:
        # Two seeds at the end: what is measured are the trials
        few = ["--tune.seeds=2", "--tune.finalists=1", "--tune.final_seeds=1"]
        self._command("tune/sweep.py", f"--samples={TRIALS}", *few)
        trials = Journal(f"{self.demo_run}-sweep", str(self.demo_run)).trials()
        ended = Counter(trial["status"] for trial in trials)
        rows = {f"sweep, trials {status}": count for status, count in ended.items()}
        yield rows | {"sweep, a trial: s": median(trial["seconds"] for trial in trials)}

    def service(self) -> Iterator[Rows]:
        yield self._served("service", [f"--gpus={self.on_gpu:d}"])
        if self.on_gpu:
            yield self._served("service, index on the GPU", ["--gpus=1", "--index-on=gpu"])
            fast = ["--gpus=1", "--precision=bf16"]
            yield self._served("service, bf16", fast)
            yield self._served("service, bf16, CUDA graphs", [*fast, "--cuda-graphs"])

    def encoders(self) -> Iterator[Rows]:
        for name in ENCODERS:
            yield elsewhere(_encoder, self.config, name, self.scratch, self.rate)

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
        options = [*options, "--gallery=none", "--text-cache=0"]  # the second round encodes, too
        with service(self.demo_run / "bundle", "default", options, self.scratch) as port:
            url = f"http://127.0.0.1:{port}"

            def ask(queries: list[tuple[bytes, str]]) -> list[float]:
                with Client(url) as client:
                    searches = [partial(client.search, image=i, text=t) for i, t in queries]
                    return [timed(search)[1] for search in searches]

            one = ask(asked)
            parts = [asked[number::CLIENTS] for number in range(CLIENTS)]
            with ThreadPoolExecutor(CLIENTS) as clients:
                _, seconds = timed(lambda: list(clients.map(ask, parts)))
        rows = {f"{name}, 1 client: p50, ms": 1000 * median(one)}
        return rows | {f"{name}, {CLIENTS} clients: answers/s": QUERIES / seconds}


def _encoder(config: Config, name: str, scratch: Path, rate: float) -> Rows:
    """Train stage 1 with an encoder of random weights, and embed with what comes of it."""
    encoder = create(config.encoder.model_copy(update={"name": name, "pretrained": ""}))
    encoder.save(scratch / name)
    weights = {"name": name, "pretrained": str(scratch / name), "bundle": ""}
    stage1 = {"epochs": EPOCHS, "select_on": "last", "finetune": "both"}
    changes = {
        "name": name,
        "runs": str(scratch / "runs"),
        "encoder": config.encoder.model_copy(update=weights),
        "stage1": config.stage1.model_copy(update=stage1),
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
