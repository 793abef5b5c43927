"""A training by Ray Train for each kind of task; starting its workers takes seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from raycd import program, progress, stores
from raycd.config import Config, TrainConfig
from raycd.data.images import BrokenImage
from raycd.errors import ConfigError, DataError, RaycdError, TrainingError, WeightsError
from raycd.model.loss import batch_classification_loss
from raycd.runtime import cluster
from raycd.runtime.train import training
from raycd.runtime.train.checkpoints import Checkpoints
from raycd.train.checkpoint import WEIGHTS
from raycd.train.loop import Loop, Schedule

SCHEDULE = Schedule(epochs=4, batch_size=8, lr=0.02, seed=0)


def make_toy(inputs: Mapping[str, Any], config: Config, device: torch.device) -> Any:
    """Return a task that learns to find sixteen rows, with given scores; pickled by value."""

    class Toy:
        name = "toy"

        def __init__(self) -> None:
            progress.say("it runs uncompiled")
            torch.manual_seed(7)
            self.module: nn.Module = nn.Linear(5, 4)
            generator = torch.Generator().manual_seed(8)
            self.rows, self.targets = (
                torch.randn(16, 5, generator=generator),
                torch.randn(16, 4, generator=generator),
            )
            self.epoch = -1

        def optimizer(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.module.parameters())

        def count(self, epoch: int) -> int:
            return 16

        def kind(self, epoch: int) -> str:
            return "original"

        def batches(self, epoch: int, rows: Sequence[Any]) -> Iterator[torch.Tensor]:
            self.epoch = epoch
            if "trained" in inputs:
                with open(inputs["trained"], "a") as file:
                    file.write(f"{epoch} ")
            for own in rows:
                yield torch.from_numpy(own)

        def loss(self, module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
            return batch_classification_loss(
                module(self.rows[batch]), self.targets[batch], batch % 9, 10.0
            )

        def select(self) -> float | None:
            score: float = inputs["scores"][self.epoch]
            return score

    return Toy()


def make_nothing(inputs: Mapping[str, Any], config: Config, device: torch.device) -> Any:
    raise DataError("the rows are gone", got="nothing", do="look for them")


def make_diverging(inputs: Mapping[str, Any], config: Config, device: torch.device) -> Any:
    """Return the toy, whose third epoch has no loss, where checkpoints take their time."""
    toy, write = make_toy(inputs, config, device), Checkpoints.write
    loss = toy.loss

    def slowly(*given: Any) -> str:
        time.sleep(2)
        return write(*given)

    setattr(Checkpoints, "write", slowly)  # noqa: B010  # of the worker's process
    toy.loss = lambda *given: loss(*given) * (float("nan") if toy.epoch == 2 else 1)
    return toy


def make_counted(inputs: Mapping[str, Any], config: Config, device: torch.device) -> Any:
    with Path(inputs["tries"]).open("a") as file:
        file.write("x")
    raise RuntimeError("it broke")


def settings(workers: Any = 1, **compute: Any) -> Config:
    few = {"train_workers": workers, "cpus_per_worker": 0.5, "threads": 1}
    return Config.model_validate({"compute": few | compute})


def alone(scores: list[float], epochs: int) -> torch.Tensor:
    """Return the weights of the toy trained in this process."""
    task = make_toy({"scores": scores}, settings(), torch.device("cpu"))
    Loop(task, Schedule(epochs, SCHEDULE.batch_size, SCHEDULE.lr, SCHEDULE.seed)).run()
    weights: torch.Tensor = task.module.weight.detach()
    return weights


def test_several_training_workers_do_not_share_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_resources", lambda: {"CPU": 2.0, "GPU": 1.0})
    monkeypatch.setattr(cluster, "_working", lambda: [{"CPU": 2.0, "GPU": 1.0}])
    for workers in (2, {"min": 1, "max": 2}):
        shared = settings(workers, gpus_per_worker=0.5)
        with pytest.raises(ConfigError, match=r"cannot share a GPU(.|\n)*gpus_per_worker 0\.5"):
            training._number(shared, SCHEDULE)
    for config in (settings(gpus_per_worker=0.5), settings(2), settings(2, device="cpu")):
        training._number(config, SCHEDULE)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.9, 1.1, 1e-6])
def test_workers_of_a_share_of_a_cpu_are_as_many_for_ray_as_for_us(share: float) -> None:
    config = settings({"min": 1, "max": 12}, device="cpu", cpus_per_worker=share)
    given = training._scaling(config, (1, 12)).resources_per_worker["CPU"]
    assert 0 < given <= max(share, 1 / 1024)
    for workers in range(1, 13):
        assert sum([given] * workers) // given == workers  # as Ray Train counts them


@pytest.mark.slow
def test_training_keeps_the_best_epoch_and_is_not_repeated(
    ray_cluster: None, tmp_path: Path
) -> None:
    scores = [0.1, 0.7, 0.3, 0.2]
    inputs = {"scores": scores, "trained": str(tmp_path / "trained.txt")}
    for _ in range(2):
        found = training.train(
            "toy",
            make_toy,
            inputs,
            SCHEDULE,
            settings(),
            storage=str(tmp_path / "store"),
            name="toy-1",
        )
        assert found.best == 1
        assert [entry["score"] for entry in found.history] == scores
        weights, expected = load_file(found.checkpoint / WEIGHTS), alone(scores, epochs=2)
        torch.testing.assert_close(weights["weight"], expected)
    assert (tmp_path / "trained.txt").read_text() == "0 1 2 3 "


@pytest.mark.slow
def test_a_workers_error_reaches_the_user_in_words(ray_cluster: None, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="the rows are gone") as caught:
        training.train(
            "toy", make_nothing, {}, SCHEDULE, settings(), storage=str(tmp_path), name="toy"
        )
    message = program._users_message(caught.value, str(tmp_path))
    assert message == "the rows are gone\n  got:      nothing\n  to do:    look for them"


@pytest.mark.slow
def test_the_best_epoch_until_then_is_written_to_its_end_before_a_training_ends(
    ray_cluster: None, tmp_path: Path
) -> None:
    inputs = {"scores": [0.1, 0.2, 0.3, 0.4]}
    with pytest.raises(TrainingError, match="toy has diverged"):
        training.train(
            "toy", make_diverging, inputs, SCHEDULE, settings(), storage=str(tmp_path), name="toy"
        )
    checkpoints = Checkpoints(str(tmp_path / "toy"))
    assert checkpoints.names() == ["epoch-0002", "epoch-0001"]
    assert len(checkpoints.read("epoch-0002").history) == 2


@pytest.mark.slow
def test_what_no_other_try_can_mend_is_not_tried_again(ray_cluster: None, tmp_path: Path) -> None:
    small, storage = replace(SCHEDULE, batch_size=1), str(tmp_path)
    with pytest.raises(ConfigError, match="the batch is too small for its workers"):
        training.train("toy", make_toy, {}, small, settings(), storage=storage, name="toy")
    assert not list(tmp_path.rglob("failures.json"))


@pytest.mark.slow
@pytest.mark.parametrize("failures", [0, 1])
def test_a_training_is_tried_again_as_often_as_the_setting_says(
    ray_cluster: None, tmp_path: Path, failures: int
) -> None:
    config = settings().model_copy(update={"train": TrainConfig(max_failures=failures)})
    inputs = {"tries": str(tmp_path / "tries")}
    with pytest.raises(Exception, match="it broke"):
        training.train(
            "toy", make_counted, inputs, SCHEDULE, config, storage=str(tmp_path), name="toy"
        )
    assert (tmp_path / "tries").read_text() == "x" * (failures + 1)


@pytest.mark.slow
def test_two_workers_take_the_steps_of_one_and_what_both_say_is_told_once(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = [0.1, 0.2, 0.3, 0.4]
    found = training.train(
        "toy",
        make_toy,
        {"scores": scores},
        SCHEDULE,
        settings(workers=2),
        storage=str(tmp_path),
        name="toy",
    )
    assert found.best == 3
    assert capsys.readouterr().err.count("toy: it runs uncompiled\n") == 1
    weights, expected = load_file(found.checkpoint / WEIGHTS), alone(scores, epochs=4)
    torch.testing.assert_close(weights["weight"], expected, rtol=1e-4, atol=1e-5)


def test_a_card_that_is_full_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(spec: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(training, "_worker", full)
    monkeypatch.setattr("ray.get", lambda reference: reference)
    told = training._run({"spec": {}})
    assert "the GPU has too little memory" in str(told)


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Return what a worker of Ray Train is given, for one in this process."""
    context = SimpleNamespace(get_local_world_size=lambda: 1)
    monkeypatch.setattr("ray.train.get_context", lambda: context)
    monkeypatch.setattr("ray.train.torch.get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr("ray.get", lambda reference: reference)
    told = SimpleNamespace(remote=lambda event: None)
    return {
        "make": make_toy,
        "inputs": {"scores": [0.1, 0.2, 0.3, 0.4]},
        "schedule": SCHEDULE,
        "config": settings(),
        "board": SimpleNamespace(note=told, write=told),
        "checkpoints": str(tmp_path / "toy"),
        "notices": False,
    }


LASTING = [ConfigError("no"), BrokenImage("no", reason="missing"), WeightsError("no")]


@pytest.mark.parametrize("error", LASTING)
@pytest.mark.parametrize("where", ["at the start", "in a step"])
def test_an_error_of_the_only_worker_that_is_the_same_on_every_try_is_not_tried_again(
    worker: dict[str, Any], error: RaycdError, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise error

    def make(inputs: Any, config: Config, device: torch.device) -> Any:
        toy = make_toy(inputs, config, device)
        toy.loss = refuse
        return toy

    worker["make"] = refuse if where == "at the start" else make
    assert training._run({"spec": worker}) is error
    monkeypatch.setattr(training, "world_size", lambda: 2)  # the other one is in a step
    with pytest.raises(type(error)):
        training._run({"spec": worker})


def test_a_store_that_does_not_answer_is_tried_again(
    worker: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> Any:
        raise ConnectionError("it is away")

    monkeypatch.setattr(stores, "WAITS", ())
    worker["make"] = lambda *_: stores.ask("s3://bucket/image.jpg", away)
    with pytest.raises(DataError, match="does not answer"):
        training._run({"spec": worker})


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_a_worker_that_goes_on_keeps_no_file_of_its_checkpoint_mapped(
    worker: dict[str, Any], tmp_path: Path
) -> None:
    seen: list[str] = []

    def make(inputs: Any, config: Config, device: torch.device) -> Any:
        toy = make_toy(inputs, config, device)
        select = toy.select

        def looked() -> Any:
            maps = Path("/proc/self/maps").read_text()
            seen.extend(line for line in maps.splitlines() if str(tmp_path) in line)
            return select()

        toy.select = looked
        return toy

    worker["make"] = make
    for epochs in (2, 4):
        worker["schedule"] = replace(SCHEDULE, epochs=epochs)
        assert training._run({"spec": worker}) is None
    assert seen == []
