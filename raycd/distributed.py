"""The training workers: rank, number, their shares of a batch, and gathering across all of them.

A batch of B rows that W workers do not divide evenly gives its first B % W workers a row more. The
training loop says so (`batch_of`); else all workers have as many rows as this one.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import distributed

T = TypeVar("T")
_batch: int | None = None  # rows of all workers, within `batch_of`


def rank() -> int:
    """Return this worker's number among the training workers, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """Return the number of training workers."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def shares(count: int, world: int) -> list[int]:
    """Return how many of `count` rows each of `world` workers has, in their order."""
    each, more = divmod(count, world)
    return [each + (number < more) for number in range(world)]


@contextmanager
def batch_of(count: int) -> Iterator[float]:
    """Let all workers' shares be those of a batch of `count` rows.

    Yields what this worker's mean over its own rows counts, so that the mean of the workers' values
    is that over the batch: 1 where all have as many.
    """
    global _batch
    _batch, before = count, _batch
    try:
        yield shares(count, world_size())[rank()] * world_size() / count
    finally:
        _batch = before


def _counts(own: int) -> list[int]:
    """Return how many rows each worker has, where this one has `own`."""
    return [own] * world_size() if _batch is None else shares(_batch, world_size())


def own_rows(count: int, device: torch.device) -> torch.Tensor:
    """Return the numbers (B,) of this worker's B = `count` rows among those that `gather` gives."""
    return torch.arange(count, device=device) + sum(_counts(count)[: rank()])


def first_of_machine(value: T) -> T:
    """Return the value that the first worker on this machine has; every worker must call it."""
    if world_size() == 1:
        return value
    own, found = socket.gethostname(), [("", value)] * world_size()
    distributed.all_gather_object(found, (own, value))
    return next(theirs for machine, theirs in found if machine == own)


def gather(rows: torch.Tensor) -> torch.Tensor:
    """Return the rows (of all workers, ...) in the workers' order.

    Gradients flow back to the worker that a row came from.
    """
    if world_size() == 1:
        return rows
    gathered: torch.Tensor = _Gather.apply(rows, _counts(len(rows)))
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
        ctx.counts = counts
        lacking = max(counts) - len(rows)  # all_gather wants as many rows of each
        if lacking:
            rows = torch.cat([rows, rows.new_zeros(lacking, *rows.shape[1:])])
        parts = [torch.empty_like(rows) for _ in counts]
        distributed.all_gather(parts, rows.contiguous())
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = grads[0].contiguous()
        distributed.all_reduce(total)
        return torch.split(total, ctx.counts)[rank()], None
