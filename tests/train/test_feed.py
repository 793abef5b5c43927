"""What the loop is told of the time for which it waited for data."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

from raycd.train.feed import Feed, on_device
from raycd.train.triplets import TripletBatch

CPU = torch.device("cpu")
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


def slowly(count: int, seconds: float) -> Iterator[int]:
    for number in range(count):
        time.sleep(seconds)
        yield number


def test_the_time_until_batches_come_is_waited_and_that_of_steps_is_not() -> None:
    feed = Feed(slowly(4, 0.05), CPU)
    for number in feed:
        assert number in range(4)
        time.sleep(0.5)
    assert 0.2 <= feed.waited() < 1.5


def batch(value: int) -> TripletBatch:
    return TripletBatch(*(torch.full((2, 2), value) for _ in range(3)))


def test_a_batch_on_a_cpu_is_passed_on_as_it_is() -> None:
    given = [batch(1), batch(2)]
    assert all(one is other for one, other in zip(on_device(given, CPU), given, strict=True))


@NEEDS_GPU
def test_batches_are_copied_to_a_gpu_and_its_idle_time_is_measured_there() -> None:
    gpu = torch.device("cuda")

    def pinned() -> Iterator[TripletBatch]:
        for number in slowly(3, 0.1):
            yield batch(number).pin_memory()

    feed = Feed(on_device(pinned(), gpu), gpu)
    for number, moved in enumerate(feed):
        assert moved.pixels.device.type == "cuda"
        assert torch.equal(moved.tokens.cpu(), torch.full((2, 2), number))
    assert 0.25 < feed.waited() < 2


@NEEDS_GPU
def test_epochs_share_the_memory_of_their_copies() -> None:
    gpu, reserved = torch.device("cuda"), list[int]()
    for _ in range(8):
        one = TripletBatch(*(torch.zeros(1 << 22).pin_memory() for _ in range(3)))
        for moved in on_device([one], gpu):
            assert moved.pixels.device.type == "cuda"
        del moved
        torch.cuda.synchronize(gpu)
        reserved.append(torch.cuda.memory_reserved(gpu))
    assert reserved[-1] == reserved[1]
