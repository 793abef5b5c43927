"""A small training as a program of its own, for tests that kill parts of it.

python -m tests.runtime.train.surviving SPEC.json
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raycd.config import Config, cli
from raycd.distributed import rank
from raycd.model.loss import batch_classification_loss
from raycd.train.loop import Loop, Schedule
from raycd.train.task import Silence

SCHEDULE = Schedule(epochs=3, batch_size=8, lr=0.02, seed=0, decay="cosine")
STEPS = 40  # of an epoch
SCORES = (0.3, 0.2, 0.1)  # the first epoch is the best


class Toy:
    """A task that learns to find rows of noise: `inputs` are its dropout, pace and accidents."""

    name = "toy"

    def __init__(self, inputs: Mapping[str, Any]) -> None:
        torch.manual_seed(7)
        self.inputs, self.epoch, self.step = inputs, -1, 0
        drop = nn.Dropout(inputs.get("dropout", 0.5))
        self.module: nn.Module = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), drop, nn.Linear(16, 4))
        generator = torch.Generator().manual_seed(8)
        count = STEPS * SCHEDULE.batch_size
        self.rows = torch.randn(count, 5, generator=generator)
        self.targets = torch.randn(count, 4, generator=generator)

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.module.parameters())

    def count(self, epoch: int) -> int:
        return len(self.rows)

    def kind(self, epoch: int) -> str:
        return "original"

    def batches(self, epoch: int, rows: Sequence[Any]) -> Iterator[torch.Tensor]:
        self.module.train()
        self.epoch, self.step = epoch, STEPS - len(rows)
        for own in rows:
            yield torch.from_numpy(own)

    def loss(self, module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        self.step += 1
        time.sleep(self.inputs.get("pace", 0))
        if "log" in self.inputs:
            with open(f"{self.inputs['log']}-{rank()}-{os.getpid()}", "a") as file:
                file.write(f"{self.epoch} {self.step}\n")
        at = self.inputs.get("dies_at")
        if at is not None and [self.epoch, self.step] == at[:2] and not os.path.exists(at[2]):
            Path(at[2]).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        found = module(self.rows[batch])
        return batch_classification_loss(found, self.targets[batch], batch, 10.0)

    def select(self) -> float | None:
        return SCORES[self.epoch]


def make(inputs: Mapping[str, Any], config: Config, device: torch.device) -> Toy:
    return Toy(inputs)


def undisturbed(dropout: float = 0.5, epochs: int = 1) -> tuple[dict[str, torch.Tensor], list[Any]]:
    """Return the weights after some epochs and the history of all, trained in this process."""
    toy = Toy({"dropout": dropout})
    kept: dict[str, torch.Tensor] = {}

    def keep(result: Any) -> None:
        if result.epoch == epochs - 1:
            kept.update({name: v.clone() for name, v in toy.module.state_dict().items()})

    history = Loop(toy, SCHEDULE, bar=lambda total, start: Silence()).run(keep)
    return kept, history


def main(path: str) -> None:
    from raycd.runtime import cluster
    from raycd.runtime.record.tracking import Tracker
    from raycd.runtime.train import training

    spec = json.loads(Path(path).read_text())
    config = Config.model_validate(spec["config"])
    training.RESIZE_EVERY = spec.get("resize_every", 60.0)
    training.WAITS = spec.get("waits", training.WAITS)
    with (
        cluster.connected(),
        Tracker.open(config, config.runs, run_id=spec["run"]) as tracker,
        tracker.stage("toy", "fingerprint") as tracked,
    ):
        found = training.train(
            *("toy", make, spec["inputs"], SCHEDULE, config),
            storage=spec["storage"],
            name="toy",
            tracked=tracked,
        )
    result = {"history": found.history, "best": found.best, "failures": found.failures}
    result |= {"checkpoint": str(found.checkpoint)}
    Path(spec["out"]).write_text(json.dumps(result))


if __name__ == "__main__":
    sys.exit(cli.guard(lambda: main(sys.argv[1]), sys.argv))
