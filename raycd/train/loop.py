"""THE training loop, used by both stages.

A stage is a `Task`: it says what trains, on which rows, with which loss, and how well an epoch did.
The loop owns order, learning rate, workers, history and checkpoints. With several workers
(torch.distributed is initialised by the caller) the module is wrapped by DistributedDataParallel
and every batch is shared out: N workers take the steps of one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, Literal

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from raycd.config import AdaptConfig, Finetuning, Stage1Config, Stage2Config
from raycd.distributed import batch_of, rank, world_size
from raycd.errors import ConfigError, DataError, TrainingError
from raycd.model import precision, weights
from raycd.progress import Bar
from raycd.train.batches import batch_sizes, epoch_batches
from raycd.train.checkpoint import TrainingState
from raycd.train.explosion import WINDOW, Explosion
from raycd.train.feed import Feed
from raycd.train.mid_epoch import MidEpoch
from raycd.train.task import Batch, Compiles, Progress, Silence, Task, Watch

LOOK_EVERY = 10  # steps between two reads of the losses: each read waits for the device


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
    clip_norm: float = 0.0
    """Gradients of a greater norm are scaled down to it; 0: none."""
    explosion: float = 0.0
    """Factor of `explosion.Explosion`; 0: no loss is too great."""

    @classmethod
    def of(cls, settings: AdaptConfig | Stage1Config | Stage2Config, seed: int) -> Schedule:
        """Return the schedule of a stage's settings; stage 2 has no warm-up."""
        return cls(
            *(settings.epochs, settings.batch_size, settings.lr, seed),
            settings.warmup if isinstance(settings, Finetuning) else 0.0,
            *(settings.decay, settings.drop_last, settings.clip_norm, settings.explosion),
        )

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

    `loss`, and the norm of the gradient before it is clipped, are means over its steps. `score`
    orders epochs: the selection metric, or the epoch's number where there is none.
    """

    epoch: int
    kind: str
    loss: float
    lr: float
    seconds: float
    rows_per_second: float
    selection: float | None
    score: float
    gradient_norm: float
    gradient_norm_max: float
    waited: float
    """Share of the seconds for which the device waited for data."""
    saving: float
    """Share of the seconds for which steps waited for checkpoints inside of the epoch."""

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
        restore: Path | TrainingState | None = None,
        bar: Callable[[int, int], Progress] | None = None,
        watch: Watch | None = None,
    ) -> None:
        """Prepare the training, from the checkpoint `restore` if there is one.

        `bar(total, start)` makes the progress bar, which the first worker advances. Raises
        WeightsError where the checkpoint is damaged.
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
        self._watch = watch
        self._mid_epoch: MidEpoch | None = None
        if restore is not None:
            self._restore(TrainingState.read(restore) if isinstance(restore, Path) else restore)
        self._batches = [len(self._sizes(e)) for e in range(schedule.epochs)]
        self._check_batches()
        self._explosion = Explosion(schedule.explosion, schedule.batch_size, self.history)
        self._step = sum(self._batches[: len(self.history)])
        self._step += self._mid_epoch.batches if self._mid_epoch is not None else 0
        self._warm = self._step + LOOK_EVERY  # steps of this process until it is
        self._looked = 0.0, self._step  # when losses were read last, and after which step
        self._timed = 0.0, 0  # seconds of steps, and how many

    def run(
        self, report: Callable[[EpochResult], object] = lambda result: None
    ) -> list[dict[str, Any]]:
        """Train the remaining epochs and return the history of all epochs.

        `report` is called on every worker after each epoch. Raises TrainingError, on all workers at
        once, where the loss or the weights are not finite; such an epoch is not reported.
        """
        module = self.task.module
        wrapped = (
            DistributedDataParallel(module, gradient_as_bucket_view=True)
            if world_size() > 1
            else module
        )
        rows = [self.task.count(e) for e in range(self.schedule.epochs)]
        done = sum(rows[: len(self.history)])
        done += (
            self._mid_epoch.batches * self.schedule.batch_size if self._mid_epoch is not None else 0
        )
        with self._bar(sum(rows), done) if rank() == 0 else Silence() as bar:
            for epoch in range(len(self.history), self.schedule.epochs):
                result = self._epoch(epoch, wrapped, bar)
                # Of another number of workers there may have been other batches before a checkpoint
                self._step = sum(self._batches[: epoch + 1])
                self.history.append(result.to_dict())
                report(result)
        return self.history

    def state(self, mid_epoch: MidEpoch | None = None) -> TrainingState:
        """Copy what the training goes on from, now: at the end of an epoch or inside of one."""
        return TrainingState.of(self.task.module, self.optimizer, self.history, mid_epoch)

    def _restore(self, state: TrainingState) -> None:
        state.fill(self.task.module, self.optimizer)
        self.history, self._mid_epoch = [dict(entry) for entry in state.history], state.mid_epoch

    def _sizes(self, epoch: int) -> list[int]:
        """Return the rows of each batch of an epoch, those of all workers."""
        schedule = self.schedule
        return batch_sizes(
            self.task.count(epoch),
            schedule.batch_size,
            world_size(),
            drop_last=schedule.drop_last,
        )

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
        sizes = self._sizes(epoch)
        measured, mid_epoch = self._begin_mid_epoch()
        self._saving = 0.0  # seconds of this epoch
        seen: list[float] = []  # those of the losses that were looked at
        feed = Feed(self.task.batches(epoch, rows[len(measured) :]), self._device)
        earlier = mid_epoch.seconds if mid_epoch is not None else 0.0
        # Of fewer workers there may have been one batch more, and nothing is left
        lr = schedule.lr_at(max(self._step - 1, 0), sum(self._batches))
        for batch, size in zip(feed, sizes[len(measured) :], strict=True):
            if mid_epoch is not None:  # after the loader, which may have drawn numbers as it began
                mid_epoch.restore_random(self._device)
                mid_epoch = None
            lr = schedule.lr_at(self._step, sum(self._batches))
            measured.append(self._update(module, batch, size, lr))
            self._step += 1
            shown: dict[str, float] = {}
            if len(measured) % LOOK_EVERY == 1 or len(measured) == len(sizes):
                shown["loss"] = self._look(measured, epoch, seen)
                self._consider_compiling(len(measured))
            bar.advance(size, epoch=epoch + 1, **shown)
            if self._watch is not None:
                if shown and rank() == 0:
                    self._watch.measured(self._step, {**shown, "lr": lr})
                if len(measured) < len(sizes):
                    passed = earlier + time.monotonic() - began
                    self._ask(self._watch, measured, passed, lr, looked=bool(shown))
        self._check_weights(epoch, lr)
        loss_B, norm_B = torch.stack(measured).unbind(1)
        loss = float(_mean_over_workers(loss_B.mean()))
        own_seconds = time.monotonic() - began
        seconds = earlier + own_seconds
        selection = self.task.select() if rank() == 0 else None
        score = float(epoch) if selection is None else selection
        rate = sum(sizes) / max(seconds, 1e-9)
        return EpochResult(
            *(epoch, self.task.kind(epoch), loss, lr, seconds, rate, selection, score),
            gradient_norm=float(norm_B.mean()),
            gradient_norm_max=float(norm_B.max()),
            waited=feed.waited() / max(own_seconds, 1e-9),
            saving=self._saving / max(own_seconds, 1e-9),
        )

    def _begin_mid_epoch(self) -> tuple[list[torch.Tensor], MidEpoch | None]:
        """Return what `_update` gave for the batches of a checkpoint, and its state.

        Both are empty where the epoch begins at its beginning.
        """
        mid_epoch, self._mid_epoch = self._mid_epoch, None
        if mid_epoch is None:
            return [], None
        return mid_epoch.measured(self._device), mid_epoch

    def _ask(
        self,
        watch: Watch,
        measured: Sequence[torch.Tensor],
        seconds: float,
        lr: float,
        *,
        looked: bool,
    ) -> None:
        """Keep a checkpoint where the watch wants one.

        Several workers ask only where they have looked at their losses, for they have to agree.
        """
        if (looked or world_size() == 1) and watch.wants():
            began = time.monotonic()
            self._check_weights(len(self.history), lr)
            watch.keep(partial(self.state, MidEpoch.gathered(measured, seconds)))
            self._saving += time.monotonic() - began

    @property
    def _device(self) -> torch.device:
        """Where the task's module is."""
        return next(self.task.module.parameters()).device

    def _check_batches(self) -> None:
        """Raise DataError for an epoch in which a worker would have nothing to do."""
        for epoch, batches in enumerate(self._batches):
            if batches == 0:
                raise DataError(
                    f"{self.task.name} has too little to train on",
                    got=f"{self.task.count(epoch)} {self.task.kind(epoch)} rows "
                    f"for {world_size()} workers",
                    expected="at least one for each worker",
                    do="add triplets (or titles) of split train whose images can be read, "
                    "or lower compute.train_workers",
                )

    def _look(self, measured: Sequence[torch.Tensor], epoch: int, seen: list[float]) -> float:
        """Return the last of an epoch's losses, averaged over the workers; add new ones to `seen`.

        Raises TrainingError where one is not finite, or they explode.
        """
        first = len(seen)
        loss_B = torch.stack(list(measured[first:]))[:, 0]
        values: list[float] = _mean_over_workers(loss_B.contiguous()).tolist()
        for number, value in enumerate(values):
            if not math.isfinite(value):
                step = self._step - len(values) + number
                lr = self.schedule.lr_at(step, sum(self._batches))
                raise self._not_finite(
                    f"loss {value} in step {first + number + 1} of epoch {epoch + 1}", lr
                )
        seen += values
        self._check_explosion(epoch, seen)
        return values[-1]

    def _consider_compiling(self, done: int) -> None:
        """Decide by the time of ten steps or more; `done` in this epoch. Each look waits for them.

        The first ten steps, of all or after a restart, are warm-up. What is between two epochs, the
        judging of one and the loading of the next, is no step's.
        """
        now, (before, first) = time.monotonic(), self._looked
        self._looked = now, self._step
        if done == 1 or first < self._warm:
            return
        seconds, steps = self._timed[0] + now - before, self._timed[1] + self._step - first
        self._timed = seconds, steps
        enough = steps >= LOOK_EVERY
        if enough and isinstance(self.task, Compiles) and self.task.compilation.undecided:
            each = torch.tensor(seconds / steps, device=self._device)
            left = sum(self._batches) - self._step
            self.task.compilation.consider(float(_mean_over_workers(each)), left)

    def _check_explosion(self, epoch: int, losses: Sequence[float]) -> None:
        """Raise TrainingError where the losses of an epoch have exploded."""
        kind, ended = self.task.kind(epoch), len(losses) == self._batches[epoch]
        found = self._explosion.find(kind, losses, ended=ended)
        if found is not None:
            lr = self.schedule.lr_at(self._step - 1, sum(self._batches))
            raise self._diverged(
                f"a median loss of {found:.4g} in the last {min(WINDOW, len(losses))} steps up to "
                f"step {len(losses)} of epoch {epoch + 1}",
                lr,
                expected=f"at most {self._explosion.limit(kind):.4g}, {self._setting}.explosion "
                f"{self.schedule.explosion:g} times what such a loss begins with",
                do=f"lower {self._setting}.lr, or set {self._setting}.clip_norm 1; "
                f"{self._setting}.explosion 0 lets it go on",
            )

    def _check_weights(self, epoch: int, lr: float) -> None:
        """Raise TrainingError where a weight is not finite on any worker."""
        names = weights.broken(self.task.module.state_dict())
        if float(_mean_over_workers(torch.tensor(float(len(names)), device=self._device))) > 0:
            raise self._not_finite(f"weights that are not finite after epoch {epoch + 1}", lr)

    def _not_finite(self, got: str, lr: float) -> TrainingError:
        do = f"lower {self._setting}.lr"
        if self._setting in precision.SECTIONS:
            do += f", or set {self._setting}.precision fp32 where it is bf16"
        return self._diverged(got, lr, expected="a finite loss and finite weights", do=do)

    def _diverged(self, got: str, lr: float, *, expected: str, do: str) -> TrainingError:
        return TrainingError(
            f"{self.task.name} has diverged",
            got=f"{got}, at a learning rate of {lr:g}",
            expected=expected,
            do=do,
        )

    @property
    def _setting(self) -> str:
        # "stage 1" is configured by stage1, "pre-train" by pretrain
        return self.task.name.replace(" ", "").replace("-", "")

    def _update(self, module: nn.Module, batch: Batch, size: int, lr: float) -> torch.Tensor:
        """Take a step on a batch of `size` rows on all workers.

        Returns the loss, and the norm of the gradient before it is clipped, (2,).
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with batch_of(size) as share:
            loss = self.task.loss(module, batch) * share
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own is untyped
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.schedule.clip_norm:
            clip_grads_with_norm_(parameters, self.schedule.clip_norm, norm)
        self.optimizer.step()
        return torch.stack([loss.detach().to(norm.dtype), norm])


def best_epoch(history: Sequence[Mapping[str, Any]]) -> int:
    """Return the number of the epoch with the greatest score; the earlier of two equal ones."""
    return int(max(history, key=lambda entry: (entry["score"], -entry["epoch"]))["epoch"])


def _mean_over_workers(value: torch.Tensor) -> torch.Tensor:
    if world_size() > 1:
        distributed.all_reduce(value)
        value = value / world_size()
    return value
