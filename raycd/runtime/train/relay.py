"""Progress across processes: a training worker advances a bar that the driver draws.

Beside the bar's state there are events, each of which the driver gets once.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raycd.progress import Bar

EVERY = 0.5  # seconds between two messages


@ray.remote(num_cpus=0)
class Board:
    """The last state that the worker wrote, and what was noted since, as an actor."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}
        self._events: list[dict[str, Any]] = []
        self._taken = 0

    def write(self, state: dict[str, Any]) -> None:
        self.state = state

    def read(self) -> dict[str, Any]:
        return self.state

    def note(self, event: dict[str, Any]) -> None:
        self._events.append(event)

    def events(self, taken: int) -> list[dict[str, Any]]:
        """Return what was noted after the first `taken` events, and forget those."""
        del self._events[: taken - self._taken]
        self._taken = taken
        return self._events


class RelayedBar:
    """A replacement of `progress.Bar` in a worker, drawn by the driver."""

    def __init__(self, board: Any, total: int, start: int) -> None:
        self._board, self._total, self._start, self._done = board, total, start, start
        self._shown: dict[str, float | int | str] = {}
        self._sent = 0.0

    def __enter__(self) -> Self:
        self._send()
        return self

    def __exit__(self, *error: object) -> None:
        self._send()

    def advance(self, n: int = 1, **shown: float | int | str) -> None:
        """Count `n` more steps, as `Bar.advance` does."""
        self._done += n
        self._shown |= shown
        if time.monotonic() - self._sent > EVERY:
            self._send()

    def _send(self) -> None:
        self._sent = time.monotonic()
        self._board.write.remote(
            {
                "total": self._total,
                "start": self._start,
                "done": self._done,
                "shown": dict(self._shown),
            }
        )


@contextmanager
def drawn(stage: str, unit: str) -> Iterator[Any]:
    """Give a board whose progress this process draws as a bar inside of the block."""
    # On this machine, which does not go while this process lives
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = Board.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]  # Any
    stop = threading.Event()
    bars: list[Bar] = []
    drawing = threading.Thread(target=_draw, args=(board, stage, unit, stop, bars), daemon=True)
    drawing.start()
    error: tuple[Any, Any, Any] = (None, None, None)
    try:
        yield board
    except BaseException:
        error = sys.exc_info()
        raise
    finally:
        stop.set()
        drawing.join()
        for bar in bars:
            bar.__exit__(*error)
        ray.kill(board)


@contextmanager
def followed(board: Any, take: Callable[[list[dict[str, Any]]], None]) -> Iterator[None]:
    """Give the events of a board to `take`, in a thread, inside of the block.

    `take` is also called with none, now and then, and a last time at the end.
    """
    stop = threading.Event()
    following = threading.Thread(target=_follow, args=(board, take, stop), daemon=True)
    following.start()
    try:
        yield
    finally:
        stop.set()
        following.join()


def _poll(ask: Callable[[], Any], take: Callable[[Any], None], stop: threading.Event) -> None:
    """Give what a board answers to `take` until `stop` is set, and once after; None: no answer."""
    while True:
        last = stop.is_set()
        try:
            answer = ray.get(ask(), timeout=5)
        except Exception:  # the cluster is ending or busy: progress is not worth an error
            answer = None
        take(answer)
        if last:
            return
        stop.wait(2 * EVERY)


def _follow(
    board: Any, take: Callable[[list[dict[str, Any]]], None], stop: threading.Event
) -> None:
    taken = 0

    def pass_on(events: list[dict[str, Any]] | None) -> None:
        nonlocal taken
        taken += len(events or [])
        take(events or [])

    _poll(lambda: board.events.remote(taken), pass_on, stop)


def _draw(board: Any, stage: str, unit: str, stop: threading.Event, bars: list[Bar]) -> None:
    """Draw until `stop` is set; `bars` gets the bar once the worker has sent its length."""

    def show(state: dict[str, Any] | None) -> None:
        if not state:
            return
        if not bars:
            bars.append(Bar(stage, total=state["total"], unit=unit, start=state["start"]))
        bars[0].advance(state["done"] - bars[0].done, **state["shown"])

    _poll(board.read.remote, show, stop)
