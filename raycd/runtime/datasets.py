"""Blocks of a table mapped by Ray Data's workers, under one progress bar."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import ray

from raycd.progress import Bar


def mapped(
    stage: str, unit: str, blocks: list[pa.Table], *steps: tuple[Callable[..., Any], dict[str, Any]]
) -> Iterator[pa.Table]:
    """Each block passed through the steps, in any order. A step is a class or function and how Ray
    Data maps it (`compute=`, `num_cpus=`, ...); it gives as many rows as it takes.
    """
    _quiet()
    dataset: ray.data.Dataset = ray.data.from_arrow(blocks)
    for what, how in steps:
        dataset = dataset.map_batches(what, **{"batch_size": None, **how})
    with Bar(stage, total=sum(len(block) for block in blocks), unit=unit) as bar:
        for part in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            bar.advance(len(part))
            yield part


def blocks_of(table: pa.Table, size: int) -> list[pa.Table]:
    """The table in slices of `size` rows."""
    return [table.slice(start, size) for start in range(0, len(table), size)]


def _quiet() -> None:
    """Raycd shows its own progress, and errors of its own.

    Ray Data's wrapper of an error loses it on the way from the worker, and with it the message for
    users.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(
        logging.ERROR
    )  # it warns that bars are off
    for told_twice in (
        "exceptions",
        "_internal.execution.streaming_executor_state",
    ):  # the error comes here, too
        logging.getLogger(f"ray.data.{told_twice}").setLevel(logging.CRITICAL)
