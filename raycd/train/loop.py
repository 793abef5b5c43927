"""THE training loop, used by both stages.

A stage is a `Task`: it says what trains, on which rows, with which loss, and how well an epoch did.
The loop owns order, learning rate, workers, history and checkpoints. With several workers
(torch.distributed is initialised by the caller) the module is wrapped by DistributedDataParallel
and every batch is shared out: N workers take the steps of one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, Protocol, Self, TypeVar, runtime_checkable

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from raycd.distributed import rank, world_size
from raycd.errors import ConfigError, DataError, TrainingError
from raycd.model import weights
from raycd.model.compiling import Compilation
from raycd.progress import Bar
from raycd.train import checkpoint
from raycd.train.batches import Rows, batch_count, epoch_batches
from raycd.train.feed import Feed

Batch = TypeVar("Batch")
Save = Callable[[Path], None]

LOOK_EVERY = 10  # steps between two reads of the losses: each read waits for the device


class Task(Protocol[Batch]):
    """What a stage feeds the loop."""

    @property
    def name(self) -> str:
        """Return the name on the progress line, e.g. "stage 1"."""

    @property
    def module(self) -> nn.Module:
        """Return what trains; with several workers, DistributedDataParallel calls its forward."""

    def optimizer(self) -> torch.optim.Optimizer:
        """Return a fresh optimizer over the parameters that train."""

    def count(self, epoch: int) -> int:
        """Return the number of rows that this epoch visits."""

    def kind(self, epoch: int) -> str:
        """Return the kind of this epoch's rows: "original" or "pseudo"."""

    def batches(self, epoch: int, rows: Sequence[Rows]) -> Iterator[Batch]:
        """Yield the data of each batch, given the rows of this worker."""

    def loss(self, module: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the loss of one batch, a scalar; `module` is `self.module`, wrapped or not."""

    def select(self) -> float | None:
        """Return the recall that chooses the best epoch, now; None: the last epoch is the best."""


@runtime_checkable
class Compiles(Protocol):
    """A task that can be compiled."""

    compilation: Compilation


class Progress(Protocol):
    """A progress bar, such as `raycd.progress.Bar`."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def advance(self, n: int = 1, **shown: float | int | str) -> None:
        """Count `n` more rows as done."""


@dataclass(frozen=True)
class Schedule:
    """Length, batch size and learning rate of a training."""

    epochs: int
    batch_size: int
    lr: float
    seed: int
    warmup: float = 0.0
    decay: Literal["none", "cosine"] = "none"
    drop_last: bool = False
    """Leave out the last, smaller batch of an epoch."""

    def lr_at(self, step: int, steps: int) -> float:
        """Return the learning rate of step `step` of `steps`, from 0."""
        rise = self.warmup * steps
        if step < rise:
            return self.lr * (step + 1) / (rise + 1)
        if self.decay == "none":
            return self.lr
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(steps - rise, 1)))


@dataclass(frozen=True)
class EpochResult:
    """What one epoch did.

    `score` orders epochs: the selection metric, or the epoch's number where there is none.
    """

    epoch: int
    kind: str
    loss: float
    lr: float
    seconds: float
    rows_per_second: float
    selection: float | None
    score: float
    waited: float = 0.0
    """Share of the seconds for which the device waited for data."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


class Loop(Generic[Batch]):
    """A stage's training, from the beginning or from a checkpoint."""

    def __init__(
        self,
        task: Task[Batch],
        schedule: Schedule,
        *,
        restore: Path | None = None,
        bar: Callable[[int, int], Progress] | None = None,
    ) -> None:
        """Prepare the training, from the checkpoint `restore` if there is one.

        `bar(total, start)` makes the progress bar, which the first worker advances.
        """
        self.task, self.schedule = task, schedule
        if schedule.batch_size < 2 * world_size():
            raise ConfigError(
                "the batch is too small for its workers",
                got=f"{schedule.batch_size} triplets for {world_size()} workers",
                expected=f"at least {2 * world_size()}: two triplets a worker",
                do="raise the stage's batch_size, or lower compute.train_workers",
            )
        self._bar = bar or (
            lambda total, start: Bar(task.name, total=total, unit="triplets", start=start)
        )
        self.optimizer = task.optimizer()
        self.history: list[dict[str, Any]] = []
        if restore is not None:
            self.history = checkpoint.restore(restore, task.module, self.optimizer)
        self._batches = [
            batch_count(
                task.count(e), schedule.batch_size, world_size(), drop_last=schedule.drop_last
            )
            for e in range(schedule.epochs)
        ]
        self._check_batches()
        self._looked = 0.0  # when losses were read last
        self._step = sum(self._batches[: len(self.history)])

    def run(self, report: Callable[[EpochResult, Save], None]) -> list[dict[str, Any]]:
        """Train the remaining epochs and return the history of all epochs.

        `report(result, save)` is called on every worker after each epoch; `save(folder)` writes a
        checkpoint from which the loop can continue. Raises TrainingError, on all workers at once,
        where the loss or the weights are not finite; such an epoch is not reported.
        """
        module = self.task.module
        wrapped = DistributedDataParallel(module) if world_size() > 1 else module
        rows = [self.task.count(e) for e in range(self.schedule.epochs)]
        done = sum(rows[: len(self.history)])
        with self._bar(sum(rows), done) if rank() == 0 else Silence() as bar:
            for epoch in range(len(self.history), self.schedule.epochs):
                result = self._epoch(epoch, wrapped, bar)
                self.history.append(result.to_dict())
                report(result, self.save)
        return self.history

    def save(self, folder: Path) -> None:
        """Write a checkpoint into `folder`."""
        checkpoint.save(folder, self.task.module, self.optimizer, self.history)

    def _epoch(self, epoch: int, module: nn.Module, bar: Progress) -> EpochResult:
        began, schedule = time.monotonic(), self.schedule
        # Seeds dropout, the same after a restart
        torch.manual_seed(hash((schedule.seed, epoch, rank())) & 0x7FFFFFFF)
        rows = epoch_batches(
            self.task.count(epoch),
            schedule.batch_size,
            seed=schedule.seed,
            epoch=epoch,
            rank=rank(),
            world=world_size(),
            drop_last=schedule.drop_last,
        )
        lr, losses, looked = schedule.lr, [], 0
        feed = Feed(self.task.batches(epoch, rows), next(self.task.module.parameters()).device)
        for batch, own in zip(feed, rows, strict=True):
            lr = schedule.lr_at(self._step, sum(self._batches))
            losses.append(self._update(module, batch, lr))
            self._step += 1
            shown: dict[str, float] = {}
            if len(losses) % LOOK_EVERY == 1 or len(losses) == len(rows):
                shown["loss"], looked = self._look(losses[looked:], epoch, looked), len(losses)
                self._consider_compiling(len(losses))
            bar.advance(len(own) * world_size(), epoch=epoch + 1, **shown)
        self._check_weights(epoch, lr)
        loss = float(_mean_over_workers(torch.stack(losses).mean()))
        seconds = time.monotonic() - began
        selection = self.task.select() if rank() == 0 else None
        score = float(epoch) if selection is None else selection
        rate = sum(len(own) for own in rows) * world_size() / max(seconds, 1e-9)
        return EpochResult(
            *(epoch, self.task.kind(epoch), loss, lr, seconds, rate, selection, score),
            waited=feed.waited() / max(seconds, 1e-9),
        )

    def _check_batches(self) -> None:
        """Raise DataError for an epoch in which a worker would have nothing to do."""
        for epoch, batches in enumerate(self._batches):
            if batches == 0:
                raise DataError(
                    f"{self.task.name} has too few triplets to train on",
                    got=f"{self.task.count(epoch)} {self.task.kind(epoch)} triplets "
                    f"for {world_size()} workers",
                    expected="at least one for each worker",
                    do="add triplets of split train whose images can be read, "
                    "or lower compute.train_workers",
                )

    def _look(self, losses: Sequence[torch.Tensor], epoch: int, first: int) -> float:
        """Return the last of the losses, averaged over the workers.

        `first` is the number of steps of the epoch before them. Raises TrainingError where one is
        not finite.
        """
        values: list[float] = _mean_over_workers(torch.stack(list(losses))).tolist()
        for number, value in enumerate(values):
            if not math.isfinite(value):
                step = self._step - len(values) + number
                lr = self.schedule.lr_at(step, sum(self._batches))
                raise self._not_finite(
                    f"loss {value} in step {first + number + 1} of epoch {epoch + 1}", lr
                )
        return values[-1]

    def _consider_compiling(self, done: int) -> None:
        """Decide by the time of the ten steps since the last look, `done` in this epoch.

        The first ten steps of all are warm-up. Each look waits for the device.
        """
        now, before = time.monotonic(), self._looked
        self._looked = now
        measured = done > 1 and done % LOOK_EVERY == 1 and self._step > 2 * LOOK_EVERY
        if measured and isinstance(self.task, Compiles) and self.task.compilation.undecided:
            device = next(self.task.module.parameters()).device
            seconds = torch.tensor((now - before) / LOOK_EVERY, device=device)
            left = sum(self._batches) - self._step
            self.task.compilation.consider(float(_mean_over_workers(seconds)), left)

    def _check_weights(self, epoch: int, lr: float) -> None:
        """Raise TrainingError where a weight is not finite on any worker."""
        names = weights.broken(self.task.module.state_dict())
        device = next(self.task.module.parameters()).device
        if float(_mean_over_workers(torch.tensor(float(len(names)), device=device))) > 0:
            raise self._not_finite(f"weights that are not finite after epoch {epoch + 1}", lr)

    def _not_finite(self, got: str, lr: float) -> TrainingError:
        # "stage 1" is configured by stage1, "pre-train" by pretrain
        setting = self.task.name.replace(" ", "").replace("-", "")
        return TrainingError(
            f"{self.task.name} has diverged",
            got=f"{got}, at a learning rate of {lr:g}",
            expected="a finite loss and finite weights",
            do=f"lower {setting}.lr, or set {setting}.precision fp32 where it is bf16",
        )

    def _update(self, module: nn.Module, batch: Batch, lr: float) -> torch.Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss = self.task.loss(module, batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own is untyped
        self.optimizer.step()
        return loss.detach()


def best_epoch(history: Sequence[dict[str, Any]]) -> int:
    """Return the number of the epoch with the greatest score; the earlier of two equal ones."""
    return int(max(history, key=lambda entry: (entry["score"], -entry["epoch"]))["epoch"])


class Silence:
    """Progress that is not shown: that of every worker but the first."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def advance(self, n: int = 1, **shown: float | int | str) -> None:
        return None


def _mean_over_workers(value: torch.Tensor) -> torch.Tensor:
    if world_size() > 1:
        distributed.all_reduce(value)
        value = value / world_size()
    return value
