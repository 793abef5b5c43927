"""Blocks of a table mapped by Ray Data's workers, under one progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import ray

from raycd.progress import Bar
from raycd.runtime import private


def mapped(
    stage: str, unit: str, blocks: list[pa.Table], *steps: tuple[Callable[..., Any], dict[str, Any]]
) -> Iterator[pa.Table]:
    """Pass each block through the steps; the blocks come in any order.

    A step is a class or function, and how Ray Data maps it (`compute=`, `num_cpus=`, ...). It
    returns as many rows as it is given.
    """
    with Bar(stage, total=sum(len(block) for block in blocks), unit=unit) as bar:
        for part in results(blocks, *steps):
            bar.advance(len(part))
            yield part


def results(
    blocks: list[pa.Table], *steps: tuple[Callable[..., Any], dict[str, Any]]
) -> Iterator[pa.Table]:
    """Pass each block through the steps as `mapped` does, which may return any number of rows."""
    quiet()
    dataset: ray.data.Dataset = ray.data.from_arrow(blocks)
    for what, how in steps:
        dataset = dataset.map_batches(what, **{"batch_size": None, **how})
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")


def blocks_of(table: pa.Table, size: int) -> list[pa.Table]:
    """Return the table in slices of `size` rows."""
    return [table.slice(start, size) for start in range(0, len(table), size)]


def quiet() -> None:
    """Turn off Ray Data's own progress, errors and advice: raycd has its own."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # Every 30 s it would advise users to set an argument of a call that is not theirs
    context.issue_detectors_config.detectors = []
    # Ray Data's wrapper of a worker's error loses it, and so its message (ray issue 46962).
    context.raise_original_map_exception = True
    private.quiet_ray_data()
