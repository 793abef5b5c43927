"""One trial: filter the mined tables, train a head on cached features; no encoder runs.

What trials share (`Tables`) lies in the object store, where worker processes read it without a
copy; the features never pass through the process that starts them.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import torch
from numpy.typing import NDArray

from raycd import mine
from raycd.config import Config
from raycd.data import targets
from raycd.data.schema import Dataset
from raycd.evaluate import Metric
from raycd.features import Features, map_cache
from raycd.features.map_cache import Extras
from raycd.model import fusion, threads
from raycd.run import local_copy
from raycd.runtime.stages import tasks
from raycd.runtime.stages.context import Context, own_device
from raycd.train import hard_negatives
from raycd.train.batches import rows_seen
from raycd.train.fuse import Fuse, new_head
from raycd.train.loop import EpochResult, Loop, Schedule, best_epoch
from raycd.train.task import Silence


class Vectors(NamedTuple):
    """Image and text features as processes share them: keys, and their vectors (N, D)."""

    images: tuple[pa.StringArray, NDArray[np.float32]]
    texts: tuple[pa.StringArray, NDArray[np.float32]]


@dataclass(frozen=True)
class Tables:
    """Everything that a trial reads, as arrays that processes share without a copy."""

    dataset: Dataset
    candidates: pa.Table
    vectors: ray.ObjectRef[Vectors]
    caches: Mapping[str, str]
    """Paths or URIs of what some heads need beside features, by need: no array, and no file of this
    machine where the run is in a store.
    """
    mined: str = ""
    """Path or URI of the stage `mine`, for hard negatives."""
    missing: frozenset[str] = frozenset()
    """Images without a feature: what names them is not trained on."""

    @classmethod
    def of(
        cls, context: Context, *, splits: tuple[str, ...], heads: Collection[str] = ()
    ) -> Tables:
        """Read what the stages `embed` and `mine` have written, and `splits` of the data set.

        A task of the connected cluster reads the features.

        Args:
            heads: Whose needs have been cached; none: those of the run's head.
        """
        missing, vectors = tasks.keep(_read, context)
        names = heads or [context.config.stage2.head]
        needs = {need for name in names for need in fusion.head_class(name).needs}
        return cls(
            context.dataset,
            pq.read_table(context.run.local("mine") / "candidates.parquet"),
            vectors,
            context.caches(needs),
            context.run.path("mine"),
            missing,
        ).only(*splits)

    def only(self, *splits: str) -> Tables:
        """Return the same with no gallery and no triplet of any other split."""
        dataset, allowed = self.dataset, pa.array(splits)
        narrowed = replace(
            dataset,
            gallery=dataset.gallery.filter(pc.is_in(dataset.gallery["split"], allowed)),
            triplets=dataset.triplets.filter(pc.is_in(dataset.triplets["split"], allowed)),
        )
        return replace(self, dataset=narrowed)

    def counts(self, config: Config) -> tuple[int, int]:
        """Return the numbers of original and, under the configured thresholds, pseudo triplets.

        Those that can be trained on: of images with features.
        """
        train = self.dataset.triplets_of("train")
        if self.missing:
            train = targets.readable(train, {*targets.images_of(train)} - self.missing)
        return len(train), len(filtered(self, config)[0])

    def extras(self, head: str) -> Extras:
        """Open the caches of what a head needs; of a store, copies that this process makes once."""
        needs = sorted(fusion.head_class(head).needs & self.caches.keys())
        return Extras({need: map_cache.read(local_copy(self.caches[need])) for need in needs})

    def features(self) -> tuple[Features, Features]:
        """Return image and text features, as training takes them."""
        images, texts = ray.get(self.vectors)
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "The given NumPy array is not writable"
            )  # nobody writes to them
            image_ND, text_ND = (torch.from_numpy(values) for _, values in (images, texts))
        return Features.of(images[0], image_ND), Features.of(texts[0], text_ND)


def _read(context: Context) -> tuple[frozenset[str], Vectors]:
    images, texts = ((found.keys, found.values.numpy()) for found in context.features("embed"))
    every = context.dataset.images["image_id"]
    missing = every.filter(pc.invert(pc.is_in(every, value_set=images[0])))
    return frozenset(missing.to_pylist()), Vectors(images, texts)


@dataclass(frozen=True)
class TrainedHead:
    """What a training gave."""

    task: Fuse
    history: list[dict[str, Any]]
    pseudo_triplets: int
    seen: int
    """Triplets, each as often as it was seen."""
    seconds: float


def train(
    tables: Tables,
    config: Config,
    metric: Metric | None,
    report: Callable[[EpochResult, int], None] = lambda result, seen: None,
    *,
    keep: Callable[[Fuse], None] = lambda task: None,
    triplets: int | None = None,
) -> TrainedHead:
    """Filter and train for `stage2.epochs`, or until `triplets` were seen; no head without weights.

    `report` is called after each epoch with the triplets seen so far, `keep` after each that is the
    best so far on the selection split by `metric`, or without one by `stage2.select_by`.
    """
    began = time.monotonic()
    compute = config.compute.model_copy(update={"train_workers": 1})  # whatever a run would have
    config = config.model_copy(update={"compute": compute})
    pseudo, _ = filtered(tables, config)
    images, texts = tables.features()
    extras = tables.extras(config.stage2.head)
    head, _ = new_head(config, images.values.shape[1], extras.shapes())
    task = Fuse(
        head.to(own_device(config)),
        tables.dataset,
        pseudo,
        images,
        texts,
        config,
        metric,
        extras,
        hard_negatives.mined(config.stage2, tables.mined),
    )
    stage2 = config.stage2
    epochs = stage2.epochs if triplets is None else _epochs(task, triplets)
    if epochs == 0 or not any(True for _ in head.parameters()):
        return TrainedHead(task, [], len(pseudo), 0, 0.0)
    schedule = replace(Schedule.of(stage2, config.seed), epochs=epochs)
    loop = Loop(task, schedule, bar=lambda total, start: Silence())

    seen = 0

    def each(result: EpochResult) -> None:
        nonlocal seen
        seen += rows_seen(task.count(result.epoch), stage2)
        if best_epoch(loop.history) == result.epoch:
            keep(task)
        report(result, seen)

    history = loop.run(each)
    return TrainedHead(task, history, len(pseudo), seen, time.monotonic() - began)


def result(done: Any) -> dict[str, Any]:
    """Return what a task has returned, or {"error": why its process was lost}."""
    try:
        found: dict[str, Any] = ray.get(done)
    except ray.exceptions.RayError as error:  # killed, out of memory, its machine gone
        return {"error": f"its process was lost: {type(error).__name__}: {error}"}
    return found


def set_threads(config: Config) -> None:
    """Give torch as many threads as CPUs are reserved for a trial, or as set."""
    threads.use(config.compute.threads or max(1, int(config.tune.cpus_per_trial)))


def filtered(tables: Tables, config: Config) -> tuple[pa.Table, mine.Counts]:
    """Return the pseudo triplets that the configuration leaves, and the counts of the filters."""
    thresholds = mine.resolve(tables.candidates, config.mine)
    train = tables.dataset.triplets_of("train")
    candidates = mine.eligible(tables.candidates, train, config.mine)
    return mine.filter_candidates(candidates, **thresholds)


def cut_short(tables: Tables, config: Config) -> int:
    """Return how many images have fewer than s_max substitutes because of mine.neighbours alone."""
    _, counts = filtered(tables, config)
    return counts["images_cut_short"] if config.stage2.pseudo else 0


def _epochs(task: Fuse, triplets: int) -> int:
    """Return the least number of epochs that see so many triplets."""
    seen = epoch = 0
    while seen < triplets:
        seen += max(1, rows_seen(task.count(epoch), task.config))
        epoch += 1
    return epoch


def evaluated(tables: Tables, config: Config, metric: Metric | None, split: str) -> dict[str, Any]:
    """Train, and measure the best epoch's head on `split`; no `metric`: `stage2.select_by` chooses.

    Returns {"recalls": category -> recall, "ranks": of the targets in the order of the split's
    triplets, None where one cannot be found, "best_epoch", "selection": its value there (both None
    where nothing trained), "pseudo_triplets", "seen": triplets, each as often as it was seen,
    "parameters": their number, "seconds"}.
    """
    best: dict[str, torch.Tensor] = {}

    def keep(task: Fuse) -> None:
        best.update(
            {name: value.detach().clone() for name, value in task.head.state_dict().items()}
        )

    trained = train(tables, config, metric, keep=keep)
    task = trained.task
    if trained.history:
        task.head.load_state_dict(best)
    found = task.measure(split, sorted({*config.evaluate.ks, *([metric.k] if metric else [])}))
    number = best_epoch(trained.history) if trained.history else None
    order = tables.dataset.triplets_of(split)["triplet_id"].to_pylist()
    return {
        "recalls": found.recalls,
        "ranks": [found.ranks[triplet] for triplet in order],
        "best_epoch": number,
        "selection": None if number is None else trained.history[number]["score"],
        "pseudo_triplets": trained.pseudo_triplets,
        "seen": trained.seen,
        "parameters": sum(p.numel() for p in task.head.parameters()),
        "seconds": round(trained.seconds, 3),
    }
