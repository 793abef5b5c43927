"""torch's threads on CPUs: how many there are, and how they wait for each other.

A thread of GNU's OpenMP that waits for the others spins for milliseconds. On a quiet machine that
is fast. Where another program has the CPU of one thread, the others spin for it instead of leaving
it theirs, and training runs at a tenth of its speed. Fewer threads would help, but sums would be
rounded otherwise: the results of a run would depend on what else the machine did. libgomp spins 100
turns instead of 300,000 while a process has more OpenMP threads than there are CPUs (its manual:
GOMP_SPINCOUNT). So while other programs need the CPUs, and only then, this process has teams of
threads that sleep.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import psutil
import torch

DECIDED = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}
LOOK_EVERY = 1.0  # seconds
LACKING = 0.5  # CPUs that the threads must lack for shorter waits: these cost a quarter if none
CGROUP = "/sys/fs/cgroup/cpu.max"  # of this process, in its container
_SHARED_OUT = 1 << 18  # elements that torch divides among all threads

_watch: threading.Thread | None = None


def usable_cpus() -> int:
    """Return the CPUs that this process, or its container, may use."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        share, of = map(int, Path(CGROUP).read_text().split())  # microseconds
    except (OSError, ValueError):  # another system, or no limit
        return own
    return min(own, max(share // of, 1))


def use(count: int) -> None:
    """Let torch use `count` threads, which wait shortly while other programs need their CPUs.

    A user who has set OMP_WAIT_POLICY or GOMP_SPINCOUNT has decided how they wait.
    """
    global _watch
    torch.set_num_threads(count)
    if count > 1 and _watch is None and not DECIDED & os.environ.keys():
        _watch = threading.Thread(target=_keep_watch, name="waits", daemon=True)
        _watch.start()


def _keep_watch() -> None:
    usage, teams, pause = Usage(), SleepingTeams(), threading.Event()
    while not pause.wait(LOOK_EVERY):
        teams.keep(wanted(usage.of_others(), torch.get_num_threads(), usage.cpus))


def wanted(others: float, count: int, cpus: int) -> int:
    """Return how many sleeping teams of `count` threads this process needs, as a rule 0.

    Args:
        others: CPUs that other programs use.
        count: Threads that work here.
        cpus: CPUs of the machine, of which the teams and the working threads must be more.
    """
    return cpus // count + 1 if others + count - cpus > LACKING else 0


class Usage:
    """How many CPUs of this machine other programs use."""

    def __init__(self) -> None:
        self.cpus = os.cpu_count() or 1
        self._own = psutil.Process()
        self._last = self._seconds()

    def of_others(self) -> float:
        """Return the CPUs that others have used since the last call, or since the beginning."""
        now, last = self._seconds(), self._last
        passed, idle, own = (after - before for after, before in zip(now, last, strict=True))
        self._last = now
        return (passed - idle - own) * self.cpus / max(passed, 1e-9)

    def _seconds(self) -> tuple[float, float, float]:
        """Return seconds of all CPUs, idle ones, and those of this process."""
        times, own = psutil.cpu_times()._asdict(), self._own.cpu_times()
        for twice in ("guest", "guest_nice"):  # counted in user and nice, too
            times.pop(twice, None)
        return sum(times.values()), times["idle"] + times.get("iowait", 0), own.user + own.system


class SleepingTeams:
    """Teams of OpenMP threads that do nothing, each of a thread of Python's and as old as it."""

    def __init__(self) -> None:
        self._ends: list[threading.Event] = []

    def keep(self, count: int) -> None:
        """Start or end teams, so that there are `count`."""
        while len(self._ends) < count:
            self._ends.append(end := threading.Event())
            threading.Thread(target=_sleep, args=(end,), name="sleeping", daemon=True).start()
        while len(self._ends) > count:
            self._ends.pop().set()


def _sleep(end: threading.Event) -> None:
    torch.ones(_SHARED_OUT).add_(1)
    end.wait()
