import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from raycd.distributed import first_of_machine
from raycd.errors import ConfigError
from raycd.model.loss import batch_classification_loss
from raycd.train.loop import EpochResult, Loop, Schedule, best_epoch
from tests.two_workers import run_two

Rows = NDArray[np.int64]


class Silence:
    """A bar that counts."""

    def __init__(self, total: int, start: int) -> None:
        self.total, self.done = total, start

    def __enter__(self) -> "Silence":
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def advance(self, n: int = 1, **shown: float | int | str) -> None:
        self.done += n


class Toy:
    """Twenty rows that learn to find themselves, with dropout; every third epoch has eight."""

    name = "toy"

    def __init__(self, dropout: float = 0.5, scores: Sequence[float] | None = None) -> None:
        torch.manual_seed(7)
        self.module: nn.Module = nn.Sequential(
            nn.Linear(5, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 4)
        )
        generator = torch.Generator().manual_seed(8)
        self.rows, self.targets = (
            torch.randn(28, 5, generator=generator),
            torch.randn(28, 4, generator=generator),
        )
        self.scores = scores
        self.epoch = -1

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.module.parameters(), lr=123.0)

    def count(self, epoch: int) -> int:
        return 8 if epoch % 3 == 2 else 20

    def kind(self, epoch: int) -> str:
        return "pseudo" if epoch % 3 == 2 else "original"

    def batches(self, epoch: int, rows: Sequence[Rows]) -> Iterator[torch.Tensor]:
        self.epoch = epoch
        self.module.train()
        for own in rows:
            yield torch.from_numpy(own) + (20 if epoch % 3 == 2 else 0)

    def loss(self, module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return batch_classification_loss(
            module(self.rows[batch]), self.targets[batch], batch % 9, 10.0
        )

    def select(self) -> float | None:
        return None if self.scores is None else self.scores[self.epoch]


SCHEDULE = Schedule(epochs=5, batch_size=8, lr=0.01, seed=3, warmup=0.25, decay="cosine")
TIMES = ("seconds", "rows_per_second", "waited", "saving")


def untimed(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in entry.items() if name not in TIMES} for entry in history
    ]


class Stop(Exception):
    pass


def test_a_loop_that_was_stopped_goes_on_bit_by_bit_dropout_included(tmp_path: Path) -> None:
    def stop_after_two(result: EpochResult) -> None:
        if result.epoch == 1:
            loop.state().write(tmp_path / "checkpoint")
            raise Stop

    whole, stopped, restored = Toy(), Toy(), Toy()
    expected = Loop(whole, SCHEDULE, bar=Silence).run()
    loop = Loop(stopped, SCHEDULE, bar=Silence)
    with pytest.raises(Stop):
        loop.run(stop_after_two)
    torch.randn(5)  # another process would have drawn other numbers by now
    reported: list[int] = []
    loop = Loop(restored, SCHEDULE, restore=tmp_path / "checkpoint", bar=Silence)
    found = loop.run(lambda result: reported.append(result.epoch))
    assert reported == [2, 3, 4]
    assert untimed(found) == untimed(expected)
    for name, value in whole.module.state_dict().items():
        assert torch.equal(restored.module.state_dict()[name], value)


def test_a_finished_loop_has_nothing_left_to_do(tmp_path: Path) -> None:
    loop = Loop(Toy(), SCHEDULE, bar=Silence)
    history = loop.run()
    loop.state().write(tmp_path)
    again = Toy()

    def fail(result: EpochResult) -> None:
        raise AssertionError("trained again")

    assert Loop(again, SCHEDULE, restore=tmp_path, bar=Silence).run(fail) == history
    first, other = loop.task.module.state_dict(), again.module.state_dict()
    assert torch.equal(other["0.weight"], first["0.weight"])


def test_the_same_seed_gives_the_same_weights_and_another_gives_others() -> None:
    weights = []
    for seed in (3, 3, 4):
        toy = Toy()
        Loop(toy, Schedule(2, 8, 0.01, seed), bar=Silence).run()
        weights.append(toy.module.state_dict()["0.weight"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_history_tells_what_every_epoch_did() -> None:
    bars: list[Silence] = []

    def bar(total: int, start: int) -> Silence:
        bars.append(Silence(total, start))
        return bars[-1]

    history = Loop(Toy(), SCHEDULE, bar=bar).run()
    assert [entry["epoch"] for entry in history] == [0, 1, 2, 3, 4]
    assert [entry["kind"] for entry in history] == [
        "original",
        "original",
        "pseudo",
        "original",
        "original",
    ]
    assert [entry["score"] for entry in history] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert [entry["selection"] for entry in history] == [None] * 5
    assert all(math.isfinite(entry["loss"]) and entry["rows_per_second"] > 0 for entry in history)
    assert all(0 <= entry["waited"] <= 1 and entry["saving"] == 0 for entry in history)
    assert (bars[0].total, bars[0].done) == (88, 88)


def test_loss_falls_and_the_last_learning_rate_of_an_epoch_is_reported() -> None:
    history = Loop(Toy(dropout=0.0), Schedule(30, 8, 0.02, seed=0), bar=Silence).run()
    assert history[28]["loss"] < 0.7 * history[0]["loss"]
    assert {entry["lr"] for entry in history} == {0.02}


@pytest.mark.parametrize(
    ("warmup", "decay", "expected"),
    [
        (0.0, "none", [0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8]),
        (0.25, "none", [0.8 / 3, 1.6 / 3, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8]),
        (
            0.0,
            "cosine",
            [0.8, 0.76955181, 0.68284271, 0.55307337, 0.4, 0.24692663, 0.11715729, 0.03044819],
        ),
        (0.5, "cosine", [0.16, 0.32, 0.48, 0.64, 0.8, 0.68284271, 0.4, 0.11715729]),
    ],
)
def test_learning_rate_of_each_step(warmup: float, decay: Any, expected: list[float]) -> None:
    schedule = Schedule(1, 8, lr=0.8, seed=0, warmup=warmup, decay=decay)
    assert [schedule.lr_at(step, 8) for step in range(8)] == pytest.approx(expected)


def test_the_best_epoch_is_the_earlier_of_two_equal_ones() -> None:
    scores = [0.2, 0.7, 0.5, 0.7, 0.1]
    history = Loop(Toy(scores=scores), SCHEDULE, bar=Silence).run()
    assert [entry["selection"] for entry in history] == scores
    assert best_epoch(history) == 1


def test_without_selection_the_last_epoch_is_the_best() -> None:
    assert best_epoch(Loop(Toy(), SCHEDULE, bar=Silence).run()) == 4


# ---- several workers
# -----------------------------------------------------------------------------------------------


def worker(number: int, folder: str) -> None:
    toy = Toy(dropout=0.0)
    loop = Loop(toy, SCHEDULE, bar=Silence)
    history = loop.run()
    loop.state().write(Path(folder) / str(number))
    message = ""
    try:
        Loop(toy, Schedule(1, batch_size=3, lr=0.1, seed=0), bar=Silence)
    except ConfigError as error:
        message = str(error)
    (Path(folder) / f"{number}.txt").write_text(message)
    assert [entry["epoch"] for entry in history] == [0, 1, 2, 3, 4]
    assert first_of_machine(number) == 0  # both are on this one


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workers")
    run_two(worker, str(folder))
    return folder


def test_two_workers_take_the_steps_of_one(two_workers: Path) -> None:
    alone = Toy(dropout=0.0)
    history = Loop(alone, SCHEDULE, bar=Silence).run()
    for number in range(2):
        toy = Toy(dropout=0.0)
        theirs = Loop(toy, SCHEDULE, restore=two_workers / str(number), bar=Silence).history
        assert [entry["loss"] for entry in theirs] == pytest.approx(
            [entry["loss"] for entry in history], rel=1e-4
        )
        for name, value in alone.module.state_dict().items():
            torch.testing.assert_close(toy.module.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_a_batch_too_small_for_its_workers_is_refused(two_workers: Path) -> None:
    for number in range(2):
        message = (two_workers / f"{number}.txt").read_text()
        assert "3 triplets for 2 workers" in message
        assert "at least 4" in message
