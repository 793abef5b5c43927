"""What the training loop asks of others: a stage's task, a progress bar, who follows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self, TypeVar, runtime_checkable

import torch
from torch import nn

from raycd.model.compiling import Compilation
from raycd.train.batches import Rows
from raycd.train.checkpoint import TrainingState

Batch = TypeVar("Batch")


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


class Watch(Protocol):
    """What follows a training from outside while an epoch is under way."""

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        """Take what was measured in a step, counted from 1 over all epochs: of the first worker."""

    def wants(self) -> bool:
        """Return whether a checkpoint shall be kept now, the same on all workers that ask."""

    def keep(self, state: Callable[[], TrainingState]) -> None:
        """Keep the checkpoint that `state()` copies, inside of an epoch, on every worker."""


class Silence:
    """Progress that is not shown: that of every worker but the first."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def advance(self, n: int = 1, **shown: float | int | str) -> None:
        return None
