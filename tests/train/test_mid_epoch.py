"""Trainings that are stopped inside of an epoch and go on from a checkpoint there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch.nn import functional as F

from raycd.config import Config
from raycd.data.demo.synthetic import write_demo_data
from raycd.data.read import read
from raycd.data.schema import PSEUDO_TRIPLET, Dataset
from raycd.data.selection import hold_out
from raycd.features import Features
from raycd.model.compiling import Compilation
from raycd.model.encoder import Encoder
from raycd.train import loop
from raycd.train.checkpoint import TrainingState
from raycd.train.finetune import FineTune, SumOfFeatures
from raycd.train.fuse import Fuse, new_head
from raycd.train.loop import Loop, Schedule
from raycd.train.mid_epoch import MidEpoch
from raycd.train.task import Silence, Task
from tests.train.test_finetune import SMALL_DATA
from tests.train.test_loop import SCHEDULE, Rows, Stop, Toy, untimed
from tests.two_workers import run_two

SMALL = Config.model_validate(
    {
        "data": SMALL_DATA,
        "stage1": {"logit_scale": 20.0},
        "stage2": {"bilinear_dim": 2, "projection_dim": 8, "hidden_dim": 8, "k": 1},
    }
)


class Stopping:
    """A watch that keeps a checkpoint after a number of steps, and stops the training there."""

    def __init__(self, step: int, folder: Path) -> None:
        self._left, self._folder = step, folder

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        return None

    def wants(self) -> bool:
        self._left -= 1
        return self._left == 0

    def keep(self, state: Callable[[], TrainingState]) -> None:
        state().write(self._folder)
        raise Stop


def silent(total: int, start: int) -> Silence:
    return Silence()


def check_that_it_goes_on(make: Callable[[], Task[Any]], schedule: Schedule, folder: Path) -> int:
    """Stop a training after each of its steps that do not end an epoch; return their number."""
    whole, stops = make(), 0
    expected = Loop(whole, schedule, bar=silent).run()
    while True:
        stopped, restored, at = make(), make(), folder / str(stops)
        try:
            Loop(stopped, schedule, bar=silent, watch=Stopping(stops + 1, at)).run()
        except Stop:
            stops += 1
        else:
            return stops
        torch.randn(5)  # another process would have drawn other numbers by now
        found = Loop(restored, schedule, restore=at, bar=silent).run()
        assert untimed(found) == untimed(expected)
        for name, value in whole.module.state_dict().items():
            assert torch.equal(restored.module.state_dict()[name], value), f"{name}, stop {stops}"


def test_a_training_stopped_after_any_step_ends_as_an_undisturbed_one_bit_by_bit(
    tmp_path: Path,
) -> None:
    assert check_that_it_goes_on(Toy, SCHEDULE, tmp_path) == 4 * 2


def test_without_the_random_states_it_would_end_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MidEpoch, "restore_random", lambda self, device: None)
    with pytest.raises(AssertionError):
        check_that_it_goes_on(Toy, SCHEDULE, tmp_path)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("data")
    write_demo_data(root, SMALL.data.synthetic)
    return hold_out(read(SMALL.data, str(root)), 0.2, seed=0)


def test_stage_1_stopped_inside_of_an_epoch_ends_bit_by_bit_the_same(
    new_encoder: Callable[[], Encoder], dataset: Dataset, tmp_path: Path
) -> None:
    paths = {row["image_id"]: row["path"] for row in dataset.images.to_pylist()}

    class Dropping(SumOfFeatures):
        def forward(
            self, pixels: torch.Tensor, tokens: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            query_BD, target_BD = super().forward(pixels, tokens)
            return F.normalize(F.dropout(query_BD, 0.3), dim=-1), target_BD

    def make() -> FineTune:
        task = FineTune(new_encoder(), dataset, paths, SMALL)
        task.module = Dropping(task.encoder)
        return task

    assert check_that_it_goes_on(make, Schedule(2, 24, 1e-3, seed=0), tmp_path) == 2 * 2


def test_stage_2_stopped_inside_of_an_epoch_ends_bit_by_bit_the_same(
    dataset: Dataset, tmp_path: Path
) -> None:
    ids = dataset.images["image_id"].to_pylist()
    rows = dataset.triplets_of("train")["captions"].to_pylist()
    texts = list(dict.fromkeys(text for row in rows for text in dataset.wording.training(row)))
    texts += [row["text"] for row in dataset.queries("selection")]
    texts = list(dict.fromkeys(texts))
    generator = torch.Generator().manual_seed(0)
    images, words = (
        Features.of(keys, torch.randn(len(keys), 8, generator=generator)) for keys in (ids, texts)
    )

    made = [
        {
            "triplet_id": row["triplet_id"],
            "category": "dress",
            "reference": row["target"],
            "target": row["reference"],
            "side": "both",
            "replaced": row["target"],
            "similarity": 0.9,
            "rank": 0,
            "score": 0.8,
            "encoder": "abc",
        }
        for row in dataset.triplets_of("train").to_pylist()
    ]
    pseudo = pa.Table.from_pylist(made, schema=PSEUDO_TRIPLET)

    def make() -> Fuse:
        head, _ = new_head(SMALL, 8)
        return Fuse(head, dataset, pseudo, images, words, SMALL)

    assert SMALL.stage2.head == "clip_cd"  # which has dropout
    assert check_that_it_goes_on(make, Schedule(3, 24, 1e-2, seed=0), tmp_path) > 2


class Waits(Toy):
    """One that may be compiled, and notes what is known where that is decided."""

    def __init__(self) -> None:
        super().__init__()
        self.known: list[tuple[float, int]] = []
        self.compilation = Compilation(lambda must: None, "auto", torch.device("cuda"))
        consider = self.compilation.consider

        def noted(seconds: float, left: int) -> None:
            self.known.append((seconds, left))
            consider(seconds, left)

        self.compilation.consider = noted  # type: ignore[method-assign]  # it notes its calls


def test_a_restart_decides_by_steps_of_its_own_whether_the_rest_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LOOK_EVERY", 2)
    schedule, whole, again = Schedule(1, 2, 1e-3, seed=0), Waits(), Waits()
    Loop(whole, schedule, bar=silent).run()
    with pytest.raises(Stop):
        Loop(Waits(), schedule, bar=silent, watch=Stopping(4, tmp_path)).run()
    Loop(again, schedule, restore=tmp_path, bar=silent).run()
    assert [left for _, left in whole.known] == [10 - 5]
    assert [left for _, left in again.known] == [10 - (4 + 5)]
    assert 0 < again.known[0][0] < 1


@pytest.mark.parametrize(("batches", "decided"), [(2, 30), (5, 25), (10, 30), (11, 22), (12, 23)])
def test_the_steps_of_short_epochs_are_timed_too(batches: int, decided: int) -> None:
    class Short(Waits):
        def count(self, epoch: int) -> int:
            return 2 * batches

        def batches(self, epoch: int, rows: Sequence[Rows]) -> Iterator[torch.Tensor]:
            return super().batches(epoch, [own % 8 for own in rows])

    short = Short()
    Loop(short, Schedule(20, 2, 1e-3, seed=0), bar=silent).run()
    assert [left for _, left in short.known] == [20 * batches - decided]


def workers(number: int, folder: str) -> None:
    """Train in two processes, stop after the first step of the second epoch, and go on."""
    loop.LOOK_EVERY = 2
    for dropout in (0.5, 0.0):
        whole, stopped, restored = (Toy(dropout) for _ in range(3))
        expected = Loop(whole, SCHEDULE, bar=silent).run()
        checkpoint = Path(folder, f"{number}-{dropout}")
        try:
            Loop(stopped, SCHEDULE, bar=silent, watch=Stopping(2, checkpoint)).run()
        except Stop:
            torch.randn(5 + number)
        found = Loop(restored, SCHEDULE, restore=checkpoint, bar=silent).run()
        assert untimed(found) == untimed(expected)
        for name, value in whole.module.state_dict().items():
            assert torch.equal(restored.module.state_dict()[name], value), name


@pytest.mark.slow
def test_two_workers_go_on_bit_by_bit_and_one_alone_within_a_tolerance(tmp_path: Path) -> None:
    run_two(workers, str(tmp_path))
    state = TrainingState.read(tmp_path / "0-0.0")
    assert state.mid_epoch is not None
    assert state.mid_epoch.measured_WB2.shape == (2, state.mid_epoch.batches, 2)
    alone, whole = Toy(0.0), Toy(0.0)
    found = Loop(alone, SCHEDULE, restore=state, bar=silent).run()
    expected = Loop(whole, SCHEDULE, bar=silent).run()
    losses, wanted = ([entry["loss"] for entry in history] for history in (found, expected))
    assert losses == pytest.approx(wanted, rel=1e-4)
    for name, value in whole.module.state_dict().items():
        torch.testing.assert_close(alone.module.state_dict()[name], value, rtol=1e-4, atol=1e-5)
