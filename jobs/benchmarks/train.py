"""Both stages on Ray Train against bare loops of PyTorch, and stage 2 against a peer's way.

The loops do the same work on the same batches, without Ray, progress, checks, history, checkpoints;
against two workers in two processes, as DistributedDataParallel wants it, and in one as well.
The peer's way is to decode and encode the images of each batch anew (as Clip4Cir trains its
Combiner): stage 2 reads features that were made once.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.parquet as pq
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from jobs.benchmarks.measuring import all_elsewhere, check_pooled, chosen, elsewhere, on_cpus
from raycd import progress
from raycd.config import Config
from raycd.data.pixels import PixelCache
from raycd.distributed import batch_of
from raycd.model import encoder as encoders
from raycd.model.fusion import HeadBatch
from raycd.model.threads import usable_cpus
from raycd.runtime import cluster, pipeline
from raycd.runtime.stages.context import IMAGES, Context
from raycd.runtime.stages.fresh import fresh_head
from raycd.train.batches import batch_sizes, epoch_batches
from raycd.train.finetune import FineTune
from raycd.train.fuse import Fuse
from raycd.train.task import Task
from raycd.train.triplets import TripletReader

EPOCHS = {"stage1": 2, "stage2": 12}  # the first warms up
# Each way by turns, for the machine may be slower for a while: the median of the rounds counts
ROUNDS = {"stage1": 3, "stage2": 5}
BARE, BARE_2, ON_RAY, ON_RAY_2 = (
    *("bare loop", "bare loop in 2 processes"),
    *("Ray Train, 1 worker", "Ray Train, 2 workers"),
)
RATIOS = {
    ("Ray Train / bare loop, 1 worker", " (at least 0.95)"): (ON_RAY, BARE),
    ("Ray Train / bare loop, 2 workers", " (at least 0.95)"): (ON_RAY_2, BARE_2),
    ("Ray Train, 2 workers / bare loop in one process", ""): (ON_RAY_2, BARE),
}
PEER_BATCHES = 4  # the first warms up


def measure(config: Config, flags: argparse.Namespace) -> dict[str, Any]:
    """Return triplets a second of each way, from the second epoch on, and their ratios."""
    check_pooled(config)
    stages = chosen(flags.only, list(EPOCHS))
    rows: dict[str, Any] = {"cores": usable_cpus(), "encoder": config.encoder.name}
    with tempfile.TemporaryDirectory(prefix="raycd-") as name, cluster.connected():
        config = on_cpus(shortened(config, stages, Path(name, "one")))
        for stage in stages:
            rates = _by_turns(config, stage)
            for way, found in rates.items():
                rows[f"{stage}: {way}, triplets/s"] = median(found)
            for (way, target), (one, other) in RATIOS.items():
                pairs = zip(rates[one], rates[other], strict=True)
                rows[f"{stage}: {way}{target}"] = median(one / other for one, other in pairs)
            progress.say(f"{stage}: {rates} triplets/s")
        if "stage2" in stages:
            peer = elsewhere(_peer, config)
            rows["stage2: images encoded anew in each batch, triplets/s"] = peer
            ours = rows["stage2: Ray Train, 1 worker, triplets/s"]
            rows["stage2: features / images (at least 50)"] = ours / peer
    return rows


def _by_turns(config: Config, stage: str) -> dict[str, list[float]]:
    """Return triplets a second of each way in each round."""
    found = defaultdict[str, list[float]](list)
    _on_ray(config, stage, 1)  # what others go on from
    for _ in range(ROUNDS[stage]):
        for workers, bare, on_ray in ((1, BARE, ON_RAY), (2, BARE_2, ON_RAY_2)):
            found[bare].append(_bare(config, stage, workers))
            found[on_ray].append(_on_ray(config, stage, workers, again=True))
    return dict(found)


def shortened(config: Config, measured: list[str], runs: Path) -> Config:
    """Return the run's settings. A stage that is not measured may have fewer epochs of its own."""
    changes: dict[str, Any] = {}
    for stage, epochs in EPOCHS.items():
        own = getattr(config, stage)
        number = epochs if stage in measured else min(own.epochs, epochs)
        changes[stage] = own.model_copy(update={"epochs": number, "select_on": "last"})
    tracking = config.tracking.model_copy(update={"enabled": False})
    return config.model_copy(
        update=changes | {"name": "run", "runs": str(runs), "tracking": tracking}
    )


def _on_ray(config: Config, stage: str, workers: int, *, again: bool = False) -> float:
    """Train a stage as a run does; `again` in a copy of the run, which stays as it is."""
    compute = config.compute.model_copy(update={"train_workers": workers})
    used = config.model_copy(update={"compute": compute})
    if again:
        runs = f"{config.runs}-again"
        shutil.copytree(config.runs, runs)
        shutil.rmtree(Path(runs, "run", stage))
        used = used.model_copy(update={"runs": runs})
    record = pipeline.recorded(pipeline.run(used, until=stage).run, stage)
    if again:
        shutil.rmtree(used.runs)
    later = record["history"][1:]
    seconds = sum(entry["seconds"] for entry in later)
    return float(sum(e["rows_per_second"] * e["seconds"] for e in later) / seconds)


def _bare(config: Config, stage: str, processes: int) -> float:
    """Train as one would write it without Ray."""
    with tempfile.TemporaryDirectory(prefix="raycd-") as scratch:
        meet = Path(scratch, "meet").as_uri()
        given = (processes, meet, config, stage)
        return min(all_elsewhere([partial(_bare_loop, rank, *given) for rank in range(processes)]))


def _bare_loop(rank: int, world: int, meet: str, config: Config, stage: str) -> float:
    """Return the triplets a second of all processes together."""
    torch.set_num_threads(max(usable_cpus() // world, 1))
    settings = getattr(config, stage)
    context = _context(config)
    task: Task[Any] = _finetune(context) if stage == "stage1" else _fuse(context)
    module = task.module
    if world > 1:
        distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=world)
        module = DistributedDataParallel(module, gradient_as_bucket_view=True)
    optimizer, rows, began = task.optimizer(), 0, 0.0
    for epoch in range(EPOCHS[stage]):
        if epoch == 1:
            rows, began = 0, time.perf_counter()
        every = task.count(epoch), settings.batch_size
        own = epoch_batches(*every, seed=config.seed, epoch=epoch, rank=rank, world=world)
        sizes = batch_sizes(*every, world)
        for batch, size in zip(task.batches(epoch, own), sizes, strict=True):
            with batch_of(size) as weight:
                loss = weight * task.loss(module, batch)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]  # torch's
            optimizer.step()
        rows += sum(sizes)
    rate = rows / (time.perf_counter() - began)
    if world > 1:
        distributed.destroy_process_group()
    return rate


def _peer(config: Config) -> float:
    """Train the head on features that are made of files in each batch."""
    torch.set_num_threads(usable_cpus())
    context = _context(config)
    tuned, fuse = _finetune(context, "stage1"), _fuse(context)
    pixels = PixelCache(tuned.pixels.paths, tuned.encoder.preprocess, config.data, 0)
    reader = TripletReader(tuned.triplets, pixels, tuned.encoder.tokenizer)
    tuned.encoder.trainable("none")
    own = epoch_batches(tuned.count(0), config.stage2.batch_size, seed=config.seed, epoch=0)
    optimizer, rows, began = fuse.optimizer(), 0, 0.0
    # Again from the first one where an epoch has fewer
    batches = islice(cycle(reader.work(own, seed=config.seed, epoch=0)), PEER_BATCHES)
    for number, work in enumerate(batches):
        if number == 1:
            rows, began = 0, time.perf_counter()
        batch = reader[work]
        with torch.inference_mode():
            image_BD, target_BD = tuned.encoder.encode_images(batch.pixels).chunk(2)
            text_BD = tuned.encoder.encode_tokens(batch.tokens, whole=True)
        # Copies: what was made in inference mode cannot be trained on
        given = HeadBatch(image_BD.clone(), text_BD.clone(), target_BD.clone(), batch.targets)
        optimizer.zero_grad(set_to_none=True)
        fuse.module(given).backward()
        optimizer.step()
        rows += len(work.rows)
    return rows / (time.perf_counter() - began)


def _context(config: Config) -> Context:
    return Context(config, pipeline.run_folder(config))


def _finetune(context: Context, source: str = "encoder") -> FineTune:
    missing = dict(context.stored("zero_shot", IMAGES).unreadable())
    paths = {key: path for key, path in _paths(context) if key not in missing}
    encoder = encoders.load_saved(context.run.local(source) / "encoder")
    return FineTune(encoder, context.dataset, paths, context.config)


def _paths(context: Context) -> Iterator[tuple[str, str]]:
    return ((key, path) for key, path in context.paths().items() if path is not None)


def _fuse(context: Context) -> Fuse:
    images, texts = context.features("embed")
    head = fresh_head(context.config, context.run)
    pseudo = context.run.local("filter") / "pseudo_triplets.parquet"
    return Fuse(head, context.dataset, pq.read_table(pseudo), images, texts, context.config)
