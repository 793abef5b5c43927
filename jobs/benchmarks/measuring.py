"""What several benchmarks need: a clock, memory of all processes (Linux), features of a gallery."""

from __future__ import annotations

import gc
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
from numpy.typing import NDArray

from raycd import progress
from raycd.config import Config
from raycd.errors import ConfigError, brief
from raycd.program import Terminated

DIM = 640  # of features where no encoder says it
CATEGORIES, SORTS = 20, 2000
COMMON, CATEGORY, SORT, OWN = 0.5, 0.12, 0.18, 0.2  # shares of a feature's squared length
EVERY_S = 0.05  # the memory is looked at
STOP_S = 60.0  # that a program has to end

Result = TypeVar("Result")


def on_cpus(config: Config) -> Config:
    """Return the settings for what is measured beside something that knows CPUs alone."""
    compute = config.compute.model_copy(update={"device": "cpu"})
    return config.model_copy(update={"compute": compute})


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """Return what `work` returns and the seconds that it takes."""
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began


def peak(
    work: Callable[[], Result],
    *,
    counted: str = "Pss",
    every_s: float = EVERY_S,
    whole: bool = False,
) -> tuple[Result, float]:
    """Return what `work` returns and by how many MiB all processes together grow at most.

    `counted` is Pss, or Pss_Anon: without the pages of mapped files. With `whole` it is all that
    they have at most.
    """
    gc.collect()
    before, over = memory(counted=counted), threading.Event()
    seen = [before]

    def sample() -> None:
        while not over.wait(every_s):
            seen.append(memory(counted=counted))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        result = work()
        return result, max(*seen, memory(counted=counted)) - (0 if whole else before)
    finally:
        over.set()
        thread.join()


def memory(process: psutil.Process | None = None, *, counted: str = "Pss") -> float:
    """Return the PSS of a process (None: of this one) and its descendants, in MiB.

    Each page counts once, however many processes share it.
    """
    process = process or psutil.Process()
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            lines = Path(f"/proc/{each.pid}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has ended
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith(f"{counted}:"))
    return total / 1024


def own_peak() -> float:
    """Return the most that was resident of this process, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def reset_own_peak() -> None:
    """Let `own_peak` begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def elsewhere(work: Callable[..., Result], *args: object) -> Result:
    """Return what `work` returns in a new process."""
    return all_elsewhere([partial(work, *args)])[0]


def all_elsewhere(works: Sequence[Callable[[], Result]]) -> list[Result]:
    """Return what each returns in a new process, all at once; these end where this one does."""
    with ProcessPoolExecutor(len(works), get_context("spawn")) as pool:
        try:
            return [asked.result() for asked in [pool.submit(work) for work in works]]
        except Terminated:  # which the other one has not heard of, as it has of Ctrl-C
            for child in active_children():
                child.terminate()
            raise


def exit_code(command: Sequence[str], **how: Any) -> int:
    """Run a program, with Popen's arguments `how`; where this one is to end, so does it, first."""
    with subprocess.Popen(command, **how) as program:
        try:
            return program.wait()
        except BaseException:
            program.terminate()  # first, for it may have a Ray to stop
            with suppress(subprocess.TimeoutExpired):
                program.wait(STOP_S)
            program.kill()
            raise


def features(
    count: int,
    dim: int = DIM,
    *,
    drawn: int = 0,
    room: Callable[[tuple[int, int], type[np.float32]], NDArray[np.float32]] = np.empty,
) -> NDArray[np.float32]:
    """Draw features (count, dim) like those of a large gallery; another `drawn` gives other images.

    They are put into an array that `room` makes.

    A common direction, 20 categories, 2,000 sorts in them (sizes by Zipf's law, exponent 0.5), and
    each image's own part: two images have a cosine of 0.5 on average, of one category 0.62, of one
    sort 0.8. The variance of each part falls as 1/i over the dimensions i, as in features of
    trained encoders: about 30 dimensions count.
    """
    fixed, rng = np.random.default_rng(0), np.random.default_rng([1, drawn])
    falling = 1 / np.arange(1, dim + 1) ** 0.5
    spectrum = (falling / np.linalg.norm(falling)).astype(np.float32)

    def part(rng: np.random.Generator, rows: int, share: float) -> NDArray[np.float32]:
        noise = rng.standard_normal((rows, dim), dtype=np.float32)
        scaled: NDArray[np.float32] = noise * (spectrum * np.float32(share**0.5))
        return scaled

    common = fixed.standard_normal(dim, dtype=np.float32)
    common *= COMMON**0.5 / np.linalg.norm(common)
    category = part(fixed, CATEGORIES, CATEGORY)[fixed.integers(CATEGORIES, size=SORTS)]
    centres = common + category + part(fixed, SORTS, SORT)
    share = 1 / np.arange(1, SORTS + 1) ** 0.5
    drawn_ND = room((count, dim), np.float32)
    for start in range(0, count, 4096):
        rows = drawn_ND[start : start + 4096]
        rows[:] = centres[rng.choice(SORTS, len(rows), p=share / share.sum())]
        rows += part(rng, len(rows), OWN)
    return drawn_ND


def chosen(only: str, known: Sequence[str]) -> list[str]:
    """Return those of the known parts that --only names, all of them where it is empty.

    Raises ConfigError for another name.
    """
    asked = [name.strip() for name in only.split(",")] if only else list(known)
    if wrong := [name for name in asked if name not in known]:
        raise ConfigError("--only names no part", got=wrong[0], expected=", ".join(known))
    return [name for name in known if name in asked]


def in_parts(
    parts: Iterable[str], rows_of: Callable[[str], Iterable[Mapping[str, Any]]]
) -> dict[str, Any]:
    """Return the rows of parts, each said as soon as it is there, and the parts' seconds.

    A part that fails has a row that says so: what the others show is worth its time.
    """
    rows: dict[str, Any] = {}
    for part in parts:
        began = time.perf_counter()
        try:
            for found in rows_of(part):
                rows |= found
                progress.say("\n".join(f"{name}: {value}" for name, value in found.items()))
        except Exception as error:
            rows[f"{part}: failed"] = brief(error)
            progress.say(f"{part} failed: {error}")
        rows[f"{part}: s"] = time.perf_counter() - began
    return rows


def check_pooled(config: Config) -> None:
    """Raise ConfigError where stage 2 needs more than pooled features, which is not measured."""
    from raycd.model import fusion  # not where memory is measured

    head = fusion.head_class(config.stage2.head)
    if head.needs or head.on_titles or not head.trains or config.stage2.hard_negatives:
        raise ConfigError(
            "this benchmark trains heads on pooled features alone",
            got=f"stage2.head {config.stage2.head}, stage2.hard_negatives "
            f"{config.stage2.hard_negatives}",
            expected="a head such as clip_cd, combiner or tirg, and no hard negatives",
        )
