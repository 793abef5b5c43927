"""Which losses are an explosion, what the loop does then, and how gradients are clipped."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from raycd.config import Config
from raycd.errors import TrainingError
from raycd.train.explosion import WINDOW, Explosion
from raycd.train.loop import Loop, Schedule
from raycd.train.task import Silence


def found(rule: Explosion, losses: Sequence[float], kind: str = "original") -> float | None:
    return rule.find(kind, losses, ended=False)


def test_a_median_far_above_the_beginning_and_guessing_is_an_explosion() -> None:
    rule = Explosion(10, batch_size=64)
    assert found(rule, [5.0] * WINDOW) is None
    assert rule.limit("original") == 50.0
    assert found(rule, [5.0] * WINDOW + [51.0] * 4) is None
    assert found(rule, [5.0] * WINDOW + [51.0] * 6) == 51.0
    assert found(rule, [1.0] * WINDOW) is None


@pytest.mark.parametrize(
    ("losses", "why"),
    [
        ([0.001] * 10 + [5.0] * 10, "a loss near 0 that rises to guessing"),
        ([4.0] * 10 + [3.0] * 6 + [1e9] * 4, "a few spikes"),
        ([190.0] * 10 + [0.1] * 10 + [200.0] * 10, "a loss that began as high"),
        ([1e6] * 9, "fewer steps than a window"),
    ],
)
def test_what_is_no_explosion(losses: list[float], why: str) -> None:
    rule = Explosion(10, batch_size=64)
    for end in range(1, len(losses) + 1):
        assert found(rule, losses[:end]) is None, why


def test_a_restart_inside_of_an_epoch_takes_what_that_began_with_for_the_beginning() -> None:
    rule = Explosion(10, batch_size=64)
    assert found(rule, [190.0] * WINDOW + [0.5] * 500) is None
    assert rule.limit("original") == 1900.0
    assert found(Explosion(10, batch_size=64), [5.0] * WINDOW + [51.0] * WINDOW) == 51.0


def test_pseudo_triplets_have_a_history_of_their_own() -> None:
    rule = Explosion(10, batch_size=64)
    found(rule, [2.0] * WINDOW)
    assert found(rule, [60.0] * WINDOW, "pseudo") is None
    assert found(rule, [590.0] * WINDOW, "pseudo") is None
    assert found(rule, [60.0] * WINDOW) == 60.0


def test_epochs_of_few_steps_are_judged_at_their_end_and_a_restart_knows_the_earlier_ones() -> None:
    rule = Explosion(10, 64, [{"kind": "original", "loss": 6.0}, {"kind": "original", "loss": 1.0}])
    assert rule.limit("original") == 60.0
    assert rule.find("original", [70.0], ended=False) is None
    assert rule.find("original", [70.0], ended=True) == 70.0


def test_a_factor_of_0_finds_none() -> None:
    rule = Explosion(0, batch_size=64)
    assert found(rule, [1.0] * WINDOW) is None
    assert found(rule, [1e30] * WINDOW) is None


class Rising:
    """A parameter whose loss is multiplied in each step of the epochs from `begin` on."""

    name = "stage 2"

    def __init__(self, begin: int = 10**9) -> None:
        self.module: nn.Module = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.module.weight, 3.0)
        self.begin, self.epoch, self.factor = begin, 0, 1.0

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.module.parameters())

    def count(self, epoch: int) -> int:
        return 40

    def kind(self, epoch: int) -> str:
        return "original"

    def batches(self, epoch: int, rows: Sequence[Any]) -> Iterator[int]:
        self.epoch = epoch
        for _ in rows:
            yield epoch

    def loss(self, module: nn.Module, batch: int) -> torch.Tensor:
        if batch >= self.begin:
            self.factor *= 1.5
        found: torch.Tensor = module(torch.tensor([[self.factor]])).sum()
        return found

    def select(self) -> float | None:
        return None


def schedule(**changes: Any) -> Schedule:
    return Schedule(**{"epochs": 4, "batch_size": 2, "lr": 1e-9, "seed": 0, **changes})


def test_a_loss_that_explodes_ends_the_stage_and_keeps_the_epochs_before(tmp_path: Path) -> None:
    loop, kept = Loop(Rising(begin=2), schedule(explosion=10.0), bar=quiet), list[int]()

    def keep(result: Any) -> None:
        loop.state().write(tmp_path / str(result.epoch))
        kept.append(result.epoch)

    with pytest.raises(TrainingError) as caught:
        loop.run(keep)
    assert kept == [0, 1]
    message = str(caught.value)
    assert message.startswith("stage 2 has diverged")
    assert "a median loss of" in message
    assert "of epoch 3, at a learning rate of 1e-09" in message
    assert "at most 30, stage2.explosion 10 times" in message
    assert "stage2.clip_norm" in message
    again = Loop(Rising(), schedule(explosion=10.0), restore=tmp_path / "1", bar=quiet)
    assert [entry["loss"] for entry in again.run()] == pytest.approx([3.0] * 4)


def test_without_the_rule_the_same_training_goes_on() -> None:
    history = Loop(Rising(begin=2), schedule(), bar=quiet).run()
    assert history[-1]["loss"] > 1e6


def test_history_has_the_mean_and_the_greatest_norm_of_the_gradient() -> None:
    task = Rising(begin=1)
    history = Loop(task, schedule(epochs=2), bar=quiet).run()
    assert (history[0]["gradient_norm"], history[0]["gradient_norm_max"]) == (1.0, 1.0)
    norms = [1.5**step for step in range(1, 21)]
    assert history[1]["gradient_norm"] == pytest.approx(sum(norms) / 20)
    assert history[1]["gradient_norm_max"] == pytest.approx(norms[-1])


@pytest.mark.parametrize(("clip", "step"), [(0.0, 1.5), (1.0, 1.0), (2.0, 1.5)])
def test_a_gradient_above_the_bound_is_scaled_down_to_it(clip: float, step: float) -> None:
    task = Rising(begin=0)
    settings = schedule(epochs=1, batch_size=40, lr=0.1, clip_norm=clip)
    (entry,) = Loop(task, settings, bar=quiet).run()
    assert entry["gradient_norm"] == 1.5  # as it was before
    (weight,) = task.module.state_dict().values()
    assert float(weight) == pytest.approx(3.0 - 0.1 * step, rel=1e-5)


def test_both_stages_stop_at_tenfold_and_clip_nothing_by_default() -> None:
    for stage in (Config().stage1, Config().stage2):
        assert (stage.explosion, stage.clip_norm) == (10.0, 0.0)
    assert Config().stage1.chunk == 0


def quiet(total: int, start: int) -> Silence:
    return Silence()
