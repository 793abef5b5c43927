"""Progress of long work: a bar on a terminal, a plain line every few seconds in a log.

with progress.Bar("stage 1", total=18000, unit="triplets") as bar:
    for batch in batches:
        bar.advance(len(batch), loss=loss)
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Self, TextIO

try:
    from tqdm import tqdm
except ModuleNotFoundError:  # only the client is installed, whose imports are its long work
    tqdm = None  # type: ignore[assignment, misc]  # looked at before use


_hears: ContextVar[Callable[[str], object] | None] = ContextVar("hears", default=None)


@contextmanager
def heard(hears: Callable[[str], object]) -> Iterator[None]:
    """Give what this thread says in the block to `hears`: nobody sees what a worker prints."""
    before = _hears.set(hears)
    try:
        yield
    finally:
        _hears.reset(before)


def say(text: str, *, stream: TextIO | None = None) -> None:
    """Print one line of status on stderr without breaking an open bar."""
    if (hears := _hears.get()) is not None and stream is None:
        hears(text)
        return
    stream = stream or sys.stderr
    if _has_bars(stream):
        tqdm.write(text, file=stream)
    else:
        print(text, file=stream, flush=True)


class Bar:
    """Progress of one stage, safe to advance from several threads.

    Args:
        stage: The name of the work, e.g. "stage 1".
        total: Number of steps; None if unknown.
        unit: The name of a step, in the plural.
        start: Steps that an earlier run has done; they count as done, but not for the rate.
        every: Seconds between two lines of a log.
        stream: Output; stderr by default.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        stage: str,
        *,
        total: int | None = None,
        unit: str = "steps",
        start: int = 0,
        every: float = 5.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stage, self.total, self.unit, self.done = stage, total, unit, start
        self._start, self._every, self._clock = start, every, clock
        self._stream = stream or sys.stderr
        self._began = self._spoke = clock()
        self._shown: dict[str, str] = {}
        self._lock = threading.Lock()
        self._bar = (
            tqdm(
                desc=stage,
                total=total,
                unit=f" {unit}",
                initial=start,
                file=self._stream,
                dynamic_ncols=True,
                leave=True,
            )
            if _has_bars(self._stream)
            else None
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            if self._bar is not None:
                self._bar.close()
            elif error is None:
                self._line(f"done in {duration(self._clock() - self._began)}")
            else:
                self._line("stopped")

    def advance(self, n: int = 1, **shown: float | int | str) -> None:
        """Count `n` more steps as done.

        The values in `shown` (loss=0.5) are printed beside them until the next call that names
        them.
        """
        with self._lock:
            self.done += n
            self._shown.update({key: _brief(value) for key, value in shown.items()})
            if self._bar is not None:
                if shown:
                    self._bar.set_postfix(self._shown, refresh=False)
                self._bar.update(n)
            elif self._clock() - self._spoke >= self._every:
                self._line(self._left())

    def _line(self, last: str) -> None:
        """Print stage 1: 640/18000 triplets (3%), 61.5 triplets/s, loss 1.23, 4 min 42 s left"""
        now = self._clock()
        self._spoke = now
        parts = [f"{self.done} {self.unit}"]
        if self.total:
            parts = [f"{self.done}/{self.total} {self.unit} ({100 * self.done // self.total}%)"]
        if (rate := self._rate(now)) > 0:
            parts.append(f"{_brief(rate)} {self.unit}/s")
        parts += [f"{key} {value}" for key, value in self._shown.items()]
        if last:
            parts.append(last)
        print(f"{self.stage}: {', '.join(parts)}", file=self._stream, flush=True)

    def _rate(self, now: float) -> float:
        seconds = now - self._began
        return (self.done - self._start) / seconds if seconds > 0 else 0.0

    def _left(self) -> str:
        rate = self._rate(self._clock())
        if self.total is None or rate == 0 or self.done >= self.total:
            return ""
        return f"{duration((self.total - self.done) / rate)} left"


def _has_bars(stream: TextIO) -> bool:
    return tqdm is not None and stream.isatty()


def duration(seconds: float) -> str:
    """Return seconds as text: 8 s, 2 min 05 s, 1 h 02 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _brief(value: float | int | str) -> str:
    """Return three significant digits: 0.0123, 4.57, 1280."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
