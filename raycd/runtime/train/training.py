"""Training of a stage on Ray Train, for a job or a trial.

Its checkpoints (`checkpoints.py`) are in the run's `.train/`, in a folder named after the stage's
fingerprint: the same stage started again goes on there, other settings start anew. Ray Train starts
the workers, and starts them again where one has failed or, with an elastic number of them, where
the cluster has changed.
"""

from __future__ import annotations

import os
import posixpath
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
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig

from raycd import progress, stores
from raycd.config import Config, cli
from raycd.data.folder import is_local
from raycd.data.images import BrokenImage
from raycd.distributed import world_size
from raycd.errors import ConfigError, DataError, RaycdError, RunError, TrainingError, WeightsError
from raycd.model import threads
from raycd.program import gpu_full
from raycd.progress import say
from raycd.run import open_uri
from raycd.runtime import cluster, local_ray, precision, private
from raycd.runtime.record.mlflow_run import MlflowRun
from raycd.runtime.train import relay
from raycd.runtime.train.checkpoints import Checkpoints
from raycd.runtime.train.failures import Failures, translate_error
from raycd.runtime.train.keeping import Keeper, Stopped
from raycd.runtime.train.live import EventHandler
from raycd.runtime.train.teller import Teller
from raycd.train.loop import Loop, Schedule
from raycd.train.task import Task

TIMEOUT_S = 7200  # that workers wait for the first, which alone judges an epoch
STORAGE = ".train"  # folder of checkpoints in a run's folder
CHECKPOINTS = "checkpoints"  # of a stage's record: its folder there, left over by a killed job
RESIZE_EVERY = 60.0  # seconds between two looks for machines that have joined
# Waits of a minute for room for all workers: a cluster may need some for another machine. Of an
# elastic number Ray Train asks for room that it takes to be there.
WAITS, ELASTIC_WAITS = 10, 3
_LASTING = (ConfigError, BrokenImage, WeightsError)  # the same on every try

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
    failures: list[dict[str, Any]]
    """What went wrong, and where it went on (`Failures`)."""


def train(
    stage: str,
    make: MakeTask,
    inputs: Mapping[str, Any],
    schedule: Schedule,
    config: Config,
    *,
    storage: str,
    name: str,
    tracked: MlflowRun | None = None,
    unit: str = "triplets",
) -> Trained:
    """Train a stage with `compute.train_workers` workers and return its best checkpoint.

    Args:
        stage: What the progress shows.
        make: Called in every worker as make(inputs, config, device); returns the task.
        inputs: What the workers need, small or by object reference.
        storage: Folder or URI for checkpoints that all workers can reach.
        name: Name of this training in `storage`; the same name continues.
        tracked: The stage's MLflow run, which gets epochs and losses meanwhile.
        unit: What the progress counts.

    Raises:
        TrainingError: The loss or the weights are no longer finite.
        RunError: A checkpoint cannot be written, or workers died more often than
            `train.max_failures`.
        TrackingError: Epochs cannot be logged; the same training goes on there.
    """
    config = precision.settled(config)
    checkpoints = Checkpoints(posixpath.join(storage, name))
    with _of_store(storage), relay.drawn(stage, unit) as board:
        checkpoints.forget_rays()
        failures = Failures(stage, checkpoints)
        spec = {
            "make": make,
            "inputs": dict(inputs),
            "schedule": schedule,
            "config": config,
            "board": board,
            "checkpoints": checkpoints.uri,
            "notices": os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1") != "0",
        }
        trainer = _trainer(spec, _run_config(storage, name, config, Teller(board)))
        record = tracked or MlflowRun(None, "")
        live = EventHandler(stage, record, failures)
        with relay.followed(board, live.take):
            result = _fit(trainer, live, config, schedule)
        live.finish()
        if isinstance(result.return_value, RaycdError):
            raise result.return_value
        history, best, folder = checkpoints.finished()
    record.log_epochs(history)
    return Trained(folder, history, best, failures.entries)


def _trainer(spec: dict[str, Any], run_config: Any) -> Callable[..., Any]:
    """Return what makes a trainer, given its `scaling_config`."""
    made: Any = private.trainer_class(alone=not local_ray.address())
    return partial(
        made,
        _run,
        # By reference: else Ray Train's controller, too, imports all that a worker imports
        train_loop_config={"spec": ray.put(spec)},
        torch_config=TorchConfig(timeout_s=TIMEOUT_S),
        run_config=run_config,
    )


def _fit(
    trainer: Callable[..., Any], live: EventHandler, config: Config, schedule: Schedule
) -> Any:
    """Train with as many workers as there is room for, and return Ray Train's result.

    Ray Train asks for the same number again, whatever the cluster has lost and whoever else works
    there. So where it has waited in vain, the number is found anew. Starts that fail end the
    training only where none has gone well between.
    """
    number = _number(config, schedule)
    while True:
        live.expect(number if isinstance(number, int) else number[0])
        begun = live.starts
        try:
            return trainer(scaling_config=_scaling(config, number)).fit()
        except TrainingFailedError as error:
            if not private.found_no_room(error):
                if private.failed_to_start(error) and live.starts > begun:
                    continue
                found = translate_error(error, config.train.max_failures)
                if found is None:
                    raise
                raise found from error
        number = _number(config, schedule, number if isinstance(number, int) else number[1])


def _number(config: Config, schedule: Schedule, vain: int = 0) -> int | tuple[int, int]:
    """Return how many workers there are: of a fixed number no more than there is room for now.

    `vain`: so many were waited for in vain (see `_beside`).

    Raises ConfigError where several are to share a card: NCCL takes one worker a card.
    """
    wanted, resources = config.compute.train_workers, cluster.worker_resources(config.compute)
    if resources.get("GPU", 1) < 1 and wanted not in (1, {"min": 1, "max": 1}):
        raise ConfigError(
            "several training workers cannot share a GPU",
            got=f"compute.gpus_per_worker {resources['GPU']:g}, compute.train_workers {wanted}",
            expected="a GPU for each of several training workers: less is for embedding, and for "
            "one worker",
            do="give --compute.gpus_per_worker 1, or --compute.train_workers 1",
        )
    if isinstance(wanted, int):
        number = _beside(cluster.fitting(wanted, resources), resources, vain)
        if number < wanted:
            text = f"{number} of {wanted} training workers: there is no room for more now"
            if local_ray.address():
                text += ". A cluster grows for --compute.train_workers "
                text += f'\'{{"min": {wanted}, "max": {wanted}}}\''
            say(text)
        return number
    most = max(1, min(wanted["max"], schedule.batch_size // 2))  # two triplets a worker
    least = min(wanted["min"], most)
    cluster.check_least(config.compute, most)
    there = cluster.fitting(most, resources)
    if there < least:
        say(f"waiting for the cluster to grow: there is no room for {least} training workers")
    # Ray Train counts what machines have, whoever uses it
    elif (room := _beside(there, resources, vain)) < there:
        most = max(least, room)
        say(f"no more than {most} training workers from now on: others use the rest of the cluster")
    return least, most


def _beside(there: int, resources: Mapping[str, float], vain: int) -> int:
    """Return no more workers than there is room for beside what others run, where there is any.

    Of as many as were waited for in `vain` there is one less: halves of GPUs that others have are
    counted as room for one. 0: none were.
    """
    free = cluster.free_room(resources) if vain else 0
    found = min(there, free) or there
    return max(1, vain - 1) if free and found == vain else found


def _scaling(config: Config, number: int | tuple[int, int]) -> Any:
    resources = cluster.worker_resources(config.compute)
    # Exact in binary: Ray Train adds shares up, and three of 0.3 CPUs are less than 0.9 then
    resources["CPU"] = max(1, int(resources["CPU"] * 1024)) / 1024
    # Its types are those of the first version of Ray Train
    made: Any = ScalingConfig
    return made(
        num_workers=number,
        use_gpu=cluster.uses_gpu(config.compute),
        resources_per_worker=resources,
        elastic_resize_monitor_interval_s=RESIZE_EVERY,
    )


@contextmanager
def _of_store(storage: str) -> Iterator[None]:
    """Raise what a store has raised, in the workers or Ray Train's controller, as RunError."""
    try:
        yield
    except Exception as error:
        causes = list(cli.causes(error))
        if is_local(storage) or any(isinstance(cause, RaycdError) for cause in causes):
            raise
        found = stores.translate_error(storage, causes, RunError)
        if found is None:
            raise
        raise found from error


def _run_config(storage: str, name: str, config: Config, teller: Teller) -> Any:
    file_system, path = _storage(storage)
    waits = WAITS if isinstance(config.compute.train_workers, int) else ELASTIC_WAITS
    made: Any = RunConfig  # as above
    failing: Any = FailureConfig
    return made(
        name=name,
        storage_path=path,
        storage_filesystem=file_system,
        failure_config=failing(
            max_failures=config.train.max_failures, controller_failure_limit=waits - 1
        ),
        callbacks=[teller],
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


def _run(given: dict[str, Any]) -> RaycdError | None:
    """Run `_worker`, and return the error with which all workers end together.

    Ray Train would try the training again if it was raised.
    """
    try:
        _worker(ray.get(given["spec"]))
    except TrainingError as error:
        return error
    except Stopped as stopped:
        return stopped.error
    except (*_LASTING, torch.OutOfMemoryError) as error:
        if world_size() > 1:  # others are in the midst of the step
            raise
        return error if isinstance(error, RaycdError) else gpu_full(error)
    return None


def _worker(spec: dict[str, Any]) -> None:
    """Train, in every worker."""
    config: Config = spec["config"]
    local = ray.train.get_context().get_local_world_size()
    threads.use(cluster.threads(config.compute, local))
    device = ray.train.torch.get_device()
    keeper = Keeper(
        Checkpoints(spec["checkpoints"]),
        spec["board"],
        minutes=config.train.checkpoint_minutes,
        share=config.train.checkpoint_share,
        every_steps=config.tracking.every_steps,
        notices=spec["notices"],
        device=device,
    )

    def bar(total: int, start: int) -> relay.RelayedBar:
        return relay.RelayedBar(spec["board"], total, start)

    with progress.heard(lambda text: keeper.tell("said", text=text)):
        task = spec["make"](spec["inputs"], config, device)
        try:
            # Without a name for what is restored: its tensors keep the files mapped
            loop = Loop(task, spec["schedule"], restore=keeper.restored(), bar=bar, watch=keeper)
        except (ConfigError, DataError) as error:  # the same on all workers, however often
            raise Stopped(error) from error
        try:
            loop.run(lambda result: keeper.ended(loop, result))
        except (TrainingError, *_LASTING, torch.OutOfMemoryError):
            keeper.give_up()  # Ray ends this process together with what it is writing
            raise
    keeper.close()
