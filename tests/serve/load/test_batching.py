"""Batches fill by themselves: what comes while the model is at work is its next batch."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from serve.load.batching import Batcher, each


class Slow:
    """Work that goes on when the test says so, and notes its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go_on = threading.Event()

    def __call__(self, batch: Sequence[int]) -> list[int]:
        self.batches.append(list(batch))
        assert self.go_on.wait(10)
        if -1 in batch:
            raise ValueError("minus one")
        return [10 * number for number in batch]


async def until(condition: object) -> None:
    for _ in range(500):
        if callable(condition) and condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen")


async def at_work(
    batcher: Batcher[int, int], work: Slow, waiting: range
) -> list[asyncio.Task[int]]:
    """Put 0 to work, and let the others wait."""
    tasks = [asyncio.create_task(batcher(0))]
    await until(lambda: work.batches)
    tasks += [asyncio.create_task(batcher(number)) for number in waiting]
    await asyncio.sleep(0)
    return tasks


def test_what_comes_meanwhile_is_the_next_batch_up_to_its_size() -> None:
    async def ask() -> list[int]:
        work = Slow()
        batcher = Batcher(work, most=3)
        tasks = await at_work(batcher, work, range(1, 6))
        work.go_on.set()
        answers = await asyncio.gather(*tasks)
        assert work.batches == [[0], [1, 2, 3], [4, 5]]
        return answers

    assert asyncio.run(ask()) == [0, 10, 20, 30, 40, 50]


def test_a_batch_takes_as_many_as_fit_by_their_sizes_and_one_that_is_too_large_alone() -> None:
    async def ask() -> None:
        work = Slow()
        batcher = Batcher(work, most=4, size=lambda number: number)
        tasks = await at_work(batcher, work, range(1, 7))
        work.go_on.set()
        await asyncio.gather(*tasks)
        assert work.batches == [[0], [1, 2], [3], [4], [5], [6]]

    asyncio.run(ask())


def test_whoever_has_given_up_is_left_out() -> None:
    async def ask() -> None:
        work = Slow()
        batcher = Batcher(work, most=8)
        tasks = await at_work(batcher, work, range(1, 4))
        tasks.pop(2).cancel()
        await asyncio.sleep(0)
        work.go_on.set()
        assert await asyncio.gather(*tasks) == [0, 10, 30]
        assert work.batches == [[0], [1, 3]]

    asyncio.run(ask())


def test_who_is_first_goes_before_all_that_wait() -> None:
    async def ask() -> None:
        work = Slow()
        batcher = Batcher(work, most=2)
        tasks = await at_work(batcher, work, range(1, 4))
        tasks.append(asyncio.create_task(batcher(9, first=True)))
        await asyncio.sleep(0)
        work.go_on.set()
        await asyncio.gather(*tasks)
        assert work.batches == [[0], [9], [1, 2], [3]]  # nor does it wait for what theirs take

    asyncio.run(ask())


def test_who_waits_for_others_holds_up_neither_who_is_first_nor_a_batch_that_is_full() -> None:
    async def ask() -> None:
        work = Slow()
        work.go_on.set()
        batcher = Batcher(work, most=4, size=lambda number: number, wait_s=60)
        lone = asyncio.create_task(batcher(1))
        await until(lambda: batcher._waiting)
        assert await asyncio.wait_for(batcher(9, first=True), 10) == 90
        assert work.batches == [[9]]
        full = await asyncio.wait_for(asyncio.gather(lone, batcher(3)), 10)
        assert list(full) == [10, 30]

    asyncio.run(ask())


def test_an_error_is_that_of_its_batch_alone() -> None:
    async def ask() -> None:
        work = Slow()
        work.go_on.set()
        batcher = Batcher(work, most=1)
        with pytest.raises(ValueError, match="minus one"):
            await batcher(-1)
        assert await batcher(2) == 20

    asyncio.run(ask())


def test_the_first_may_wait_for_others() -> None:
    async def ask() -> None:
        work = Slow()
        work.go_on.set()
        batcher = Batcher(work, most=8, wait_s=1)
        first = asyncio.create_task(batcher(1))
        await until(lambda: batcher._waiting)
        await asyncio.gather(first, batcher(2))
        assert work.batches == [[1, 2]]

    asyncio.run(ask())


def test_who_is_first_waits_for_no_others() -> None:
    async def ask() -> int:
        work = Slow()
        work.go_on.set()
        batcher = Batcher(work, most=3, wait_s=60.0)
        return await asyncio.wait_for(batcher(1, first=True), timeout=10)

    assert asyncio.run(ask()) == 10


def test_what_fails_of_a_batch_fails_alone_and_what_is_alike_is_answered_together() -> None:
    asked: list[tuple[str, list[int]]] = []

    def work(by: str, numbers: list[int]) -> list[int]:
        asked.append((by, numbers))
        if -1 in numbers:
            raise ValueError("minus one")
        return [10 * number for number in numbers]

    mixed = [("a", 1), ("b", 2), ("a", -1), ("b", 3)]
    one, two, failed, three = each(mixed, work)
    assert (one, two, three) == (10, 20, 30)
    assert isinstance(failed, ValueError)
    assert asked == [("a", [1, -1]), ("b", [2, 3]), ("a", [1]), ("a", [-1])]
    asked.clear()
    one, _, failed, _ = each(mixed, work, again=lambda by, some: False)
    assert one is failed
    assert len(asked) == 2


def test_an_answer_that_is_an_exception_is_raised() -> None:
    async def ask() -> list[int | BaseException]:
        batcher: Batcher[int, int] = Batcher(
            lambda batch: [ValueError("no") if number < 0 else number for number in batch], most=3
        )
        return await asyncio.gather(*map(batcher, (1, -1)), return_exceptions=True)

    fine, failed = asyncio.run(ask())
    assert fine == 1
    assert isinstance(failed, ValueError)
