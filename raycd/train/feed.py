"""What feeds the loop: batches that are copied while the device computes, and the time it waits.

A step on a GPU is only begun by the time that the next batch is asked for. So that batch is read
and copied beside it, and the GPU waits for as long as reading takes longer than a step.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Generic, Protocol, Self, TypeVar

import torch


class Movable(Protocol):
    """A batch of tensors."""

    def to(self, device: torch.device) -> Self:
        """Return it on a device, copied from pinned memory without waiting."""

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory of its tensors until `stream` has used them."""


Batch = TypeVar("Batch")
Moved = TypeVar("Moved", bound=Movable)


def on_device(batches: Iterable[Moved], device: torch.device) -> Iterator[Moved]:
    """Yield batches on the device; to a GPU they are copied beside what it computes."""
    if device.type != "cuda":
        yield from batches
        return
    copies = _stream(device)
    for batch in batches:
        with torch.cuda.stream(copies):
            moved = batch.to(device)
        computes = torch.cuda.current_stream(device)
        computes.wait_stream(copies)
        moved.record_stream(computes)
        yield moved


@lru_cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream of copies, one for each device: each stream keeps memory of its own."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's


class Feed(Generic[Batch]):
    """The batches of an epoch, and how long the device has waited for them.

    On a GPU that is measured there, from the end of a step to the beginning of the next.
    """

    def __init__(self, batches: Iterable[Batch], device: torch.device) -> None:
        self._batches, self._device = iter(batches), device
        self._marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds = 0.0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._device.type != "cuda":
            began = time.monotonic()
            batch = next(self._batches)
            self._seconds += time.monotonic() - began
            return batch
        ended = self._mark()
        batch = next(self._batches)
        self._marks.append((ended, self._mark()))
        return batch

    def waited(self) -> float:
        """Return the seconds until now; on a GPU, wait for what it computes."""
        if self._marks:
            torch.cuda.synchronize(self._device)
        passed: float = sum(ended.elapsed_time(begins) for ended, begins in self._marks)
        return self._seconds + passed / 1000

    def _mark(self) -> torch.cuda.Event:
        mark = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch's
        mark.record(torch.cuda.current_stream(self._device))
        return mark
