"""Checkpoints in the background, of processes that are killed or find the disk full."""

from __future__ import annotations

import errno
import json
import math
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import set_forkserver_preload
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from s3fs import S3FileSystem
from safetensors import SafetensorError
from torch.multiprocessing.spawn import ProcessExitedException, start_processes

from raycd import stores
from raycd.errors import TrainingError
from raycd.runtime.train import keeping
from raycd.runtime.train.checkpoints import Checkpoints
from raycd.runtime.train.keeping import Keeper, Stopped
from raycd.train.checkpoint import TrainingState
from raycd.train.loop import EpochResult, Loop
from raycd.train.task import Silence
from tests.faulty_store import Fault, faulty_store
from tests.full_disk import no_room
from tests.runtime.train import surviving
from tests.runtime.train.surviving import SCHEDULE, STEPS, Toy, undisturbed


def keeper(
    folder: Path | str,
    tell: Callable[[dict[str, Any]], None],
    minutes: float,
    share: float = 1.0,
    **more: Any,
) -> Keeper:
    """Return a keeper whose events go to a function of this process instead of an actor."""
    board = SimpleNamespace(note=SimpleNamespace(remote=tell))
    given: dict[str, Any] = {"every_steps": 0, "notices": False, "device": torch.device("cpu")}
    return Keeper(Checkpoints(str(folder)), board, minutes=minutes, share=share, **(given | more))


def train(
    folder: Path | str,
    inputs: dict[str, Any],
    tell: Callable[[dict[str, Any]], None] = lambda event: None,
) -> tuple[Toy, Loop[Any]]:
    """Train as a worker of Ray Train does, with a checkpoint every 30 ms."""
    toy, keep = Toy(inputs), keeper(folder, tell, minutes=0.0005)
    restored = keep.restored()
    loop = Loop(toy, SCHEDULE, restore=restored, bar=lambda total, start: Silence(), watch=keep)
    loop.run(lambda result: keep.ended(loop, result))
    keep.close()
    return toy, loop


def without_room(folder: str) -> None:
    """Train where no file may be longer than 100 bytes once the first epoch is over."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    events: list[dict[str, Any]] = []

    def tell(event: dict[str, Any]) -> None:
        events.append(event)
        if event["kind"] == "epoch":
            while not Path(folder, "small", "epoch-0001").exists():
                time.sleep(0.01)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))

    error = ""
    try:
        train(Path(folder, "small"), {"pace": 0.005}, tell)
    except Stopped as stopped:
        error = str(stopped.error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    warnings = [event["text"] for event in events if event["kind"] == "warning"]
    Path(folder, "said.json").write_text(json.dumps([warnings, error]))


def work(number: int, folder: str) -> None:
    """Train without room, then with room until a kill."""
    torch.set_num_threads(1)
    without_room(folder)
    train(Path(folder, "store"), {"pace": 0.03, "dies_at": [1, 39, f"{folder}/died"]})


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that both trainings have left: a process of its own takes seconds."""
    folder = tmp_path_factory.mktemp("left")
    set_forkserver_preload(["raycd.runtime.train.keeping"])
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        start_processes(work, (str(folder),), nprocs=1, start_method="forkserver")  # type: ignore[no-untyped-call]  # torch's
    return folder


def test_a_training_that_is_killed_inside_of_an_epoch_goes_on_there_and_ends_bit_by_bit_the_same(
    left: Path,
) -> None:
    events: list[dict[str, Any]] = []
    toy, loop = train(left / "store", {}, events.append)
    assert [event["kind"] for event in events[:2]] == ["worker", "began"]
    assert events[1]["start"].startswith("epoch 2, step ")
    weights, history = undisturbed(epochs=3)
    assert [entry["loss"] for entry in loop.history] == [entry["loss"] for entry in history]
    for name, value in toy.module.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_a_checkpoint_without_room_is_told_and_one_at_the_end_of_an_epoch_ends_the_training(
    left: Path,
) -> None:
    warnings, error = json.loads((left / "said.json").read_text())
    assert len(warnings) >= 1
    assert warnings[0].startswith("a checkpoint could not be written (")
    assert warnings[0].endswith("training goes on")
    assert "a checkpoint could not be written" in error
    assert "File too large" in error
    assert "make room there, then run the same command again" in error
    newest, _, damaged = Checkpoints(str(left / "small")).newest()
    assert newest is not None
    assert damaged == []
    assert [path.name for path in (left / "small").iterdir() if path.name[0] == "."] == []


def test_a_step_waits_for_the_copy_of_a_checkpoint_and_not_for_its_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, let_go = TrainingState.write, threading.Event()

    def slowly(self: TrainingState, folder: Path) -> None:
        assert let_go.wait(30)
        write(self, folder)

    monkeypatch.setattr(TrainingState, "write", slowly)
    keep, toy = keeper(tmp_path, lambda event: None, minutes=1e-9), Toy({})
    loop = Loop(toy, SCHEDULE, bar=lambda total, start: Silence())
    assert keep.wants()
    keep.keep(loop.state)
    assert not keep.wants(), "one is being written"
    let_go.set()
    keep.close()
    assert Checkpoints(str(tmp_path)).names() == ["epoch-0000"]


@pytest.mark.parametrize("notice", [False, True])
def test_of_short_epochs_the_best_and_the_last_are_written(
    notice: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, scores = TrainingState.write, (0.1, 0.2, 0.4, 0.3, 0.2, 0.1)
    written: list[int] = []

    def slowly(self: TrainingState, folder: Path) -> None:
        time.sleep(0.5)
        written.append(len(self.history))
        write(self, folder)

    monkeypatch.setattr(TrainingState, "write", slowly)
    monkeypatch.setattr(surviving, "SCORES", scores)
    keep, toy = keeper(tmp_path, lambda event: None, minutes=0, share=0.01), Toy({})
    loop = Loop(toy, replace(SCHEDULE, epochs=6), bar=lambda total, start: Silence())

    def ended(result: EpochResult) -> None:
        keep.ended(loop, result)
        if notice and len(loop.history) == 5:  # that this machine will go
            keep.keep(loop.state)

    history = loop.run(ended)
    keep.close()
    assert written == ([1, 3, 5, 6] if notice else [1, 3, 6])
    known, best, folder = Checkpoints(str(tmp_path)).finished()
    assert (known, best, folder.name) == (history, 2, "epoch-0003")
    assert TrainingState.read(folder).history == history[:3]


def test_epochs_of_one_batch_are_measured_and_kept_where_a_machine_will_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surviving, "SCORES", (0.5, 0.4, 0.3, 0.2, 0.1))
    monkeypatch.setattr(keeping, "ASK_EVERY", 0)
    going: list[str] = []
    told = SimpleNamespace(preempted_node_ids=going)
    monkeypatch.setattr("ray.train.get_preemption_info", lambda: told)
    events: list[dict[str, Any]] = []
    keep = keeper(tmp_path, events.append, 0, share=1e-9, every_steps=1, notices=True)
    one_batch = replace(SCHEDULE, epochs=5, batch_size=SCHEDULE.batch_size * STEPS)
    loop = Loop(Toy({}), one_batch, bar=lambda total, start: Silence(), watch=keep)

    def ended(result: EpochResult) -> None:
        if result.epoch == 2:
            going.append("this one")
        keep.ended(loop, result)

    loop.run(ended)
    keep.close()
    assert [event["step"] for event in events if event["kind"] == "measured"] == [1, 2, 3, 4, 5]
    assert [event["text"] for event in events if event["kind"] == "warning"] == [
        "a machine of the training will go: a checkpoint is kept"
    ]
    # The best, and the two newest
    assert Checkpoints(str(tmp_path)).names() == ["epoch-0005", "epoch-0003", "epoch-0001"]


def test_the_best_epoch_that_is_held_is_written_where_an_error_ends_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surviving, "SCORES", (0.1, 0.4, 0.3))
    keep, toy = keeper(tmp_path, lambda event: None, minutes=0, share=1e-9), Toy({})
    loop = Loop(toy, replace(SCHEDULE, epochs=6), bar=lambda total, start: Silence())

    def ended(result: EpochResult) -> None:
        keep.ended(loop, result)
        if len(loop.history) == 3:
            raise TrainingError("toy has diverged", got="nan")

    with pytest.raises(TrainingError):
        loop.run(ended)
    keep.wait()
    assert Checkpoints(str(tmp_path)).names() == ["epoch-0001"]
    keep.give_up()
    assert Checkpoints(str(tmp_path)).names() == ["epoch-0002", "epoch-0001"]


def test_what_goes_on_without_its_process_group_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "world_size", lambda: 2)
    keep = keeper(tmp_path, lambda event: None, minutes=0.0005)
    monkeypatch.setattr(keeping, "world_size", lambda: 1)  # Ray has taken it away

    def state() -> TrainingState:
        raise AssertionError("nothing is copied")

    for ask in (keep.wants, lambda: keep.keep(state)):
        with pytest.raises(RuntimeError, match="are being ended"):
            ask()
    assert Checkpoints(str(tmp_path)).names() == []


def test_a_training_goes_on_where_an_older_checkpoint_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(self: Checkpoints, name: str) -> None:
        raise OSError(errno.ESTALE, "Stale file handle", name)

    events: list[dict[str, Any]] = []
    monkeypatch.setattr(Checkpoints, "_remove", stale)
    _, loop = train(tmp_path, {}, events.append)
    assert len(loop.history) == SCHEDULE.epochs
    warnings = [event["text"] for event in events if event["kind"] == "warning"]
    assert warnings
    assert all(text.startswith("an older checkpoint could not be removed") for text in warnings)


def test_a_full_disk_of_this_machine_is_not_taken_for_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    keep = keeper(f"memory://{tmp_path.name}/stage", lambda event: None, minutes=0)
    loop = Loop(Toy({}), SCHEDULE, bar=lambda total, start: Silence())
    with no_room():
        keep._write(loop.state(), is_epoch=True)
        error = keep.wait()
    assert "File too large" in str(error)
    assert f"expected: a folder with room that can be written: {tmp_path}\n" in str(error)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("safetensors", [False, True])
def test_only_a_full_disk_is_to_have_more_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, safetensors: bool
) -> None:
    text = os.strerror(number)
    error = OSError(number, text)
    raised = SafetensorError(f"I/O error: {text} (os error {number})") if safetensors else error

    def refuse(self: TrainingState, folder: Path) -> None:
        raise raised

    monkeypatch.setattr(TrainingState, "write", refuse)
    keep, loop = keeper(tmp_path, lambda event: None, 0), Loop(Toy({}), SCHEDULE)
    keep._write(loop.state(), is_epoch=True)
    said = str(keep.wait())
    assert text in said
    assert ("with room" in said, "make room there" in said) == (number == errno.ENOSPC,) * 2


def test_a_training_goes_on_in_a_bucket_where_nothing_may_be_removed(
    s3: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "WAITS", (0.01,))
    events: list[dict[str, Any]] = []
    with faulty_store(s3["AWS_ENDPOINT_URL"]) as proxy:
        proxy.faults = [
            Fault("403 AccessDenied", ("DELETE",), times=math.inf),
            Fault("403 AccessDenied", ("POST",), "delete", times=math.inf),
        ]
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        S3FileSystem.clear_instance_cache()
        uri = f"s3://raycd/{tmp_path.name}/stage"
        train(uri, {}, events.append)
        warnings = [event["text"] for event in events if event["kind"] == "warning"]
        assert warnings
        assert all(text.startswith("an older checkpoint could not be removed") for text in warnings)
        assert len(Checkpoints(uri).finished()[0]) == SCHEDULE.epochs
