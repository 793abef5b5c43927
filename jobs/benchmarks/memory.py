"""Memory of this process and all that it started, sampled while something runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil


class Peak:
    """The most that was seen, in bytes."""

    def __init__(self) -> None:
        self.bytes = proportional()


@contextmanager
def watched(every: float = 0.05) -> Iterator[Peak]:
    """Sample while open. Each page counts once, however many processes share it."""
    peak, over = Peak(), threading.Event()

    def sample() -> None:
        while not over.wait(every):
            peak.bytes = max(peak.bytes, proportional())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def proportional(process: psutil.Process | None = None) -> int:
    """PSS of a process and its descendants, in bytes (Linux); None: of this one."""
    process = process or psutil.Process()
    return sum(_pss(each.pid) for each in [process, *process.children(recursive=True)])


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:")), 0)
