"""Batches of images that are decoded on any CPUs of the cluster, by Ray Data.

A training worker has a data set of its own, of an epoch's batches, and reads it by
`streaming_split`: an actor beside the worker has tasks decode batches ahead, as many as there is
memory for, and gives them in their order. So the same is trained as with images that the worker
decodes itself. Nothing keeps the pixels for later epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.data.collate_fn import NumpyBatchCollateFn
from torch.utils.data import Dataset

from raycd import progress
from raycd.config import ComputeConfig, Config, Finetuning
from raycd.errors import ConfigError, RaycdError
from raycd.runtime import cluster, datasets, local_ray
from raycd.train.triplets import Batches, ReturnsErrors, TripletBatch, Work

AHEAD = 2  # batches that a worker holds, pinned for its GPU

Rows = dict[str, NDArray[Any]]


class ClusterLoader:
    """A reader of batches in tasks of the cluster."""

    def __init__(self, reader: Dataset[TripletBatch], compute: ComputeConfig) -> None:
        self._reader, self._cpus = ray.put(ReturnsErrors(reader)), _cpus(compute)
        progress.say("CPUs of the cluster decode the images")

    def batches(self, work: Sequence[Work]) -> Iterator[TripletBatch]:
        """Yield the batches. Raises BrokenImage where one cannot be read any more."""
        if not work:
            return
        datasets.quiet()
        rows = [each._asdict() for each in work]
        read: Any = _read  # Ray Data's type of it has no further arguments
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            read,
            batch_size=None,
            fn_kwargs={"reader": [self._reader]},  # in a list Ray passes the reference itself
            num_cpus=self._cpus,
        )
        dataset.context.execution_options.preserve_order = True
        own = dataset.streaming_split(1)[0]
        given: Any = own.iter_torch_batches(
            batch_size=None, prefetch_batches=AHEAD, device="cpu", collate_fn=_Collate()
        )
        for found in given:
            if isinstance(found, RaycdError):
                raise found
            yield found


def decoder(
    settings: Finetuning, compute: ComputeConfig
) -> Callable[[Dataset[TripletBatch]], Batches] | None:
    """Return what makes a reader's loader where the settings ask for the cluster, else None."""
    if settings.decode_on == "worker":
        return None
    return partial(ClusterLoader, compute=compute)


def _cpus(compute: ComputeConfig) -> float:
    """Return what a task reserves: it decodes in one thread."""
    return min(1.0, compute.cpus_per_worker)


def check_room(config: Config) -> None:
    """Raise ConfigError where the workers leave no CPU of this machine to tasks that decode.

    Training would wait for ever. A cluster that a job was submitted to may grow: there it is said.
    """
    asked = [
        name
        for name, settings in (("adapt", config.adapt), ("stage1", config.stage1))
        if settings.decode_on == "cluster" and settings.epochs and settings.finetune != "none"
    ]
    if not asked:
        return
    compute = config.compute
    resources = cluster.worker_resources(compute)
    workers = cluster.fitting(compute.most_train_workers, resources)
    if workers * compute.cpus_per_worker + _cpus(compute) <= cluster.cpus():
        return
    if local_ray.address():
        progress.say(f"{asked[0]}.decode_on cluster waits for a machine with a CPU that is free")
    else:
        raise ConfigError(
            f"{asked[0]}.decode_on cluster, and no CPU is left that decodes",
            got=f"{workers} training workers of {compute.cpus_per_worker:g} CPUs, "
            f"and {cluster.cpus()} CPUs",
            expected=f"{_cpus(compute):g} more",
            do="lower compute.train_workers or compute.cpus_per_worker, "
            f"or give --{asked[0]}.decode_on worker",
        )


def _read(rows: Any, reader: list[Any]) -> Rows:
    """Read the batches of a task: one. What it has none of is left out."""
    work = Work(*(np.array(rows[field][0], np.int64) for field in Work._fields))
    found = _local(reader[0])[work]
    if isinstance(found, TripletBatch):
        given = {name: tensor for name, tensor in vars(found).items() if tensor is not None}
        return {name: tensor[None].numpy() for name, tensor in given.items() if tensor.numel()}
    error = np.empty(1, object)
    error[0] = found
    return {"error": error}


@lru_cache(maxsize=8)  # Ray keeps the process for later tasks, those of other training workers too
def _local(reader: Any) -> Any:
    torch.set_num_threads(1)
    return ray.get(reader)


class _Collate(NumpyBatchCollateFn):
    """Returns the batch of a row, pinned where there is a GPU: in a thread of Ray Data."""

    def __call__(self, rows: Rows) -> Any:
        if "error" in rows:
            return rows["error"][0]
        # Copies: Ray's memory cannot be written, nor pinned
        given = {name: torch.tensor(values[0]) for name, values in rows.items()}
        found = TripletBatch(**{"tokens": torch.zeros(0, 0, dtype=torch.int64), **given})
        return found.pin_memory() if torch.cuda.is_available() else found
