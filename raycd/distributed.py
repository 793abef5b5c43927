"""The training workers: rank, number, and gathering across all of them."""

from __future__ import annotations

import socket
from typing import Any, TypeVar

import torch
from torch import distributed

T = TypeVar("T")


def rank() -> int:
    """Return this worker's number among the training workers, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """Return the number of training workers."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def own_rows(count: int, device: torch.device) -> torch.Tensor:
    """Return the numbers (B,) of this worker's B = `count` rows among those that `gather` gives."""
    return torch.arange(count, device=device) + rank() * count


def first_of_machine(value: T) -> T:
    """Return the value that the first worker on this machine has; every worker must call it."""
    if world_size() == 1:
        return value
    own, found = socket.gethostname(), [("", value)] * world_size()
    distributed.all_gather_object(found, (own, value))
    return next(theirs for machine, theirs in found if machine == own)


def gather(rows: torch.Tensor) -> torch.Tensor:
    """Return the rows (W * B, ...) of all W workers, in their order.

    Gradients flow back to the worker that a row came from.
    """
    if world_size() == 1:
        return rows
    gathered: torch.Tensor = _Gather.apply(rows)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        total = grads[0].contiguous()
        distributed.all_reduce(total)
        return total.chunk(world_size())[rank()]
