"""Progress that crosses processes: a training worker advances a bar that the driver draws."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import ray

from raycd.progress import Bar

EVERY = 0.2  # seconds between two messages


@ray.remote(num_cpus=0)
class Board:
    """What the worker wrote last."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def write(self, state: dict[str, Any]) -> None:
        self.state = state

    def read(self) -> dict[str, Any]:
        return self.state


class RelayedBar:
    """Stands in for `progress.Bar` in a worker: same use, drawn elsewhere."""

    def __init__(self, board: Any, total: int, start: int) -> None:
        self._board, self._total, self._start, self._done = board, total, start, start
        self._shown: dict[str, float | int | str] = {}
        self._sent = 0.0

    def __enter__(self) -> Self:
        self._send()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._send()

    def advance(self, n: int = 1, **shown: float | int | str) -> None:
        """As `Bar.advance`."""
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
    """A board whose progress is drawn as a bar by this process while the block runs."""
    board = Board.remote()  # type: ignore[attr-defined]
    stop = threading.Event()
    bars: list[Bar] = []
    artist = threading.Thread(target=_draw, args=(board, stage, unit, stop, bars), daemon=True)
    artist.start()
    error: tuple[Any, Any, Any] = (None, None, None)
    try:
        yield board
    except BaseException:
        error = sys.exc_info()
        raise
    finally:
        stop.set()
        artist.join()
        for bar in bars:
            bar.__exit__(*error)
        ray.kill(board)


def _draw(board: Any, stage: str, unit: str, stop: threading.Event, bars: list[Bar]) -> None:
    """Until `stop` is set; `bars` gets the bar as soon as the worker has said how long it is."""
    while True:
        last = stop.is_set()
        try:
            state = ray.get(board.read.remote(), timeout=5)
        except Exception:
            state = {}  # the cluster is going away or busy: progress is not worth an error
        if state:
            if not bars:
                bars.append(Bar(stage, total=state["total"], unit=unit, start=state["start"]))
            bars[0].advance(state["done"] - bars[0].done, **state["shown"])
        if last:
            return
        stop.wait(2 * EVERY)
