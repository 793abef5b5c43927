"""Trainings whose workers die too often or get no room, by Ray Train itself."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    InsufficientClusterResourcesError,
    WorkerHealthCheckFailedError,
)

from raycd.config import Config, TrainConfig
from raycd.errors import DataError, RunError
from raycd.runtime import cluster
from raycd.runtime.train import training
from raycd.runtime.train.failures import translate_error
from tests.runtime.train.test_training import SCHEDULE, make_toy, settings


def make_dead(inputs: Mapping[str, Any], config: Config, device: torch.device) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [2, pytest.param({"min": 1, "max": 2}, marks=pytest.mark.slow)])
def test_a_training_begins_with_fewer_workers_where_ray_waits_in_vain_for_all(
    ray_cluster: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    workers: Any,
) -> None:
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "2")
    for waits in ("WAITS", "ELASTIC_WAITS"):
        monkeypatch.setattr(training, waits, 1)
    others = ray.util.placement_group([{"CPU": 1.0}])
    ray.get(others.ready())
    try:
        found = training.train(
            *("toy", make_toy, {"scores": [0.1, 0.2]}, replace(SCHEDULE, epochs=2)),
            settings(workers, cpus_per_worker=1.0),
            storage=str(tmp_path),
            name="toy",
        )
    finally:
        ray.util.remove_placement_group(others)
    assert found.best == 1
    said = capsys.readouterr().err
    told = "1 of 2 training workers: there is no room for more now"
    assert (told if workers == 2 else "no more than 1 training workers from now on") in said


@pytest.mark.parametrize(
    ("left", "vain", "number"),
    [
        ([4.0, 4.0], 0, 3),
        ([4.0, 1.0], 3, 2),
        ([3.0, 1.0], 3, 1),  # room for two by the sum, on no machine for a second one
        ([1.0, 1.0], 3, 3),  # none at all: it is waited for
        ([4.0, 4.0], 3, 2),  # what Ray calls free was waited for in vain
        ([4.0, 4.0], 2, 3),
        ([2.0, 0.0], 1, 1),
    ],
)
def test_after_waiting_in_vain_there_are_as_many_as_others_leave_room_for(
    monkeypatch: pytest.MonkeyPatch, left: list[float], vain: int, number: int
) -> None:
    monkeypatch.setattr(cluster, "_working", lambda: [{"CPU": 4.0}, {"CPU": 4.0}])
    monkeypatch.setattr(cluster, "_resources", lambda: {"CPU": 8.0})
    free = [*({"CPU": cpus} for cpus in left), {"memory": 1.0}]
    monkeypatch.setattr("raycd.runtime.private.free_resources", lambda: free)
    fixed, elastic = (settings(n, cpus_per_worker=2.0) for n in (3, {"min": 1, "max": 3}))
    assert training._number(fixed, SCHEDULE, vain) == number
    assert training._number(elastic, SCHEDULE, vain) == (1, number)


def test_a_training_whose_worker_dies_too_often_ends_with_one_message(
    ray_cluster: None, tmp_path: Path
) -> None:
    config = settings().model_copy(update={"train": TrainConfig(max_failures=0)})
    with pytest.raises(RunError) as caught:
        training.train("toy", make_dead, {}, SCHEDULE, config, storage=str(tmp_path), name="toy")
    what, got, expected, do = str(caught.value).splitlines()
    assert what == "a training worker has died"
    assert got.startswith("  got:      failure 1: The actor died unexpectedly")
    assert expected == "  expected: at most 0 failures (train.max_failures)"
    assert do.endswith("run the same command again to continue, or raise train.max_failures")
    assert caught.value.__cause__, "for the watch: it may be Ray itself that has died"


DEATH = ActorDiedError()
FULL: Any = OutOfMemoryError  # it has no types
FULL = FULL("Task was killed due to the node running low on memory")


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (WorkerGroupError("", {0: RuntimeError("peer"), 1: DEATH}), "a training worker has died"),
        (
            WorkerGroupError("", {0: WorkerHealthCheckFailedError("", FULL)}),
            "a training worker was ended: its machine had no memory left",
        ),
        (
            ControllerError(InsufficientClusterResourcesError("a maximum of 2 GPU")),
            "training workers cannot be started",
        ),
        (WorkerGroupError("", {0: DataError("the rows are gone"), 1: DEATH}), None),
        (WorkerGroupError("", {0: RuntimeError("it broke")}), None),
    ],
)
def test_what_ends_a_training_is_told_by_its_cause(error: Exception, what: str | None) -> None:
    told = translate_error(error, 1)
    assert (told and told.what) == what
