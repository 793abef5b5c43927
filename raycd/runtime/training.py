"""Training of a stage on Ray Train, for a job or a trial.

Ray Train keeps a checkpoint of each epoch (the best and the last one stay) in the run's `.train/`,
in a folder named after the stage's fingerprint: the same stage started again continues there, other
settings start anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray
import ray.train
import ray.train.torch
import torch
from fsspec.implementations.local import LocalFileSystem
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig

from raycd import scratch, stores
from raycd.config import Config, cli
from raycd.data.folder import is_local
from raycd.distributed import rank
from raycd.errors import RaycdError, RunError, TrainingError
from raycd.model import threads
from raycd.run import open_uri
from raycd.runtime import cluster, precision, private, relay
from raycd.train import checkpoint
from raycd.train.loop import EpochResult, Loop, Save, Schedule, Task, best_epoch

STORAGE = ".train"  # folder of checkpoints in a run's folder

MakeTask = Callable[[Mapping[str, Any], Config, torch.device], Task[Any]]


@dataclass(frozen=True)
class Trained:
    """The outcome of a training."""

    checkpoint: Path
    """Folder of the best epoch's checkpoint."""
    history: list[dict[str, Any]]
    """One entry for each epoch."""
    best: int
    """The best epoch."""


def train(
    stage: str,
    make: MakeTask,
    inputs: Mapping[str, Any],
    schedule: Schedule,
    config: Config,
    *,
    storage: str,
    name: str,
) -> Trained:
    """Train a stage with `compute.train_workers` workers and return its best checkpoint.

    Args:
        stage: What the progress shows.
        make: Called in every worker as make(inputs, config, device); returns the task.
        inputs: What the workers need, small or by object reference.
        storage: Folder or URI for checkpoints that all workers can reach.
        name: Name of this training in `storage`; the same name continues.

    Raises:
        TrainingError: The loss or the weights are no longer finite.
    """
    config = precision.settled(config)
    resources = cluster.worker_resources(config.compute)
    workers = cluster.fitting(config.compute.train_workers, resources)
    use_gpu = cluster.uses_gpu(config.compute)
    with relay.drawn(stage, "triplets") as board:
        spec = {
            "make": make,
            "inputs": dict(inputs),
            "schedule": schedule,
            "config": config,
            "threads": cluster.threads(config.compute, workers),
            "board": board,
        }
        trainer = private.trainer_class()(
            _run,
            # By reference: Ray Train's controller reads its arguments, too, and would import all
            # that a worker imports, for seconds.
            train_loop_config={"spec": ray.put(spec)},
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu=use_gpu, resources_per_worker=resources
            ),
            run_config=_run_config(storage, name),
        )
        with _of_store(storage):
            result = trainer.fit()
    if isinstance(result.return_value, TrainingError):
        raise result.return_value
    assert result.checkpoint is not None, "every epoch reports one"
    # The last checkpoint stays, too, though it need not be among the best.
    with scratch.folder() as folder:
        history = checkpoint.read_history(_fetched(result.checkpoint, folder))
    kept = {int(metrics["epoch"]): saved for saved, metrics in result.best_checkpoints or []}
    best = best_epoch([entry for entry in history if entry["epoch"] in kept])
    return Trained(_fetched(kept[best], scratch.new_folder()), history, best)


@contextmanager
def _of_store(storage: str) -> Iterator[None]:
    """Raise what a store has raised, in the workers or Ray Train's controller, as RunError."""
    try:
        yield
    except Exception as error:
        causes = list(cli.causes(error))
        if is_local(storage) or any(isinstance(cause, RaycdError) for cause in causes):
            raise
        found = stores.told(storage, causes, RunError)
        if found is None:
            raise
        raise found from error


def _run_config(storage: str, name: str) -> RunConfig:
    file_system, path = _storage(storage)
    return RunConfig(
        name=name,
        storage_path=path,
        storage_filesystem=file_system,
        failure_config=FailureConfig(max_failures=1),
        checkpoint_config=CheckpointConfig(
            num_to_keep=2, checkpoint_score_attribute="score", checkpoint_score_order="max"
        ),
    )


def _storage(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """Return the file system of a URI, and the path in it: fsspec's, as everywhere in a run.

    Arrow's own file systems support fewer stores, and take their addresses and credentials from
    other variables.
    """
    file_system, path = open_uri(uri)
    if isinstance(file_system, LocalFileSystem):
        return pyarrow.fs.LocalFileSystem(), path
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(file_system)), path


def _fetched(saved: Checkpoint, folder: Path) -> Path:
    """Return the local folder of a checkpoint: its own, or `folder` with a copy from a store."""
    if isinstance(saved.filesystem, pyarrow.fs.LocalFileSystem):
        return Path(saved.path)
    store: Any = saved.filesystem  # of `_storage`
    uri = store.handler.fs.unstrip_protocol(saved.path)
    # Not `to_directory`, which leaves two files for locks in the temporary folder, each time
    get = partial(store.handler.fs.get, f"{saved.path}/", f"{folder}/", recursive=True)
    stores.ask(uri, get, kind=RunError)
    return folder


def _run(given: dict[str, Any]) -> TrainingError | None:
    """Run `_worker`, and return the error that all workers raise together.

    Ray Train would try the training again if it was raised.
    """
    try:
        _worker(ray.get(given["spec"]))
    except TrainingError as error:
        return error
    return None


def _worker(spec: dict[str, Any]) -> None:
    """Train, in every worker."""
    threads.use(spec["threads"])
    device = ray.train.torch.get_device()
    task = spec["make"](spec["inputs"], spec["config"], device)
    before = ray.train.get_checkpoint()

    def bar(total: int, start: int) -> relay.RelayedBar:
        return relay.RelayedBar(spec["board"], total, start)

    with scratch.folder() as folder:
        restore = _fetched(before, folder) if before is not None else None
        loop = Loop(task, spec["schedule"], restore=restore, bar=bar)
    loop.run(_report)


def _report(result: EpochResult, save: Save) -> None:
    """Report an epoch to Ray Train, with a checkpoint from the first worker."""
    metrics = {"epoch": result.epoch, "loss": result.loss, "score": result.score}
    if rank() != 0:
        ray.train.report(metrics)
        return
    with scratch.folder() as folder:
        save(folder)
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))
