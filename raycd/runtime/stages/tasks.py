"""A step of a stage as one task: the features that it reads are never in the driver.

It gets what the driver has of the run, a `Context` (settings, tables of the data set), reads what
earlier stages have written, and returns little. What it writes goes to a folder or store that all
machines reach.
"""

from __future__ import annotations

import posixpath
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

import ray
import torch

from raycd import scratch
from raycd.data.folder import is_local
from raycd.errors import RunError
from raycd.features import shards
from raycd.model import threads
from raycd.run import IDENTITY, forgetting_copies
from raycd.runtime import cluster
from raycd.runtime.record.mlflow_run import MlflowRun
from raycd.runtime.stages.context import Context

Given = TypeVarTuple("Given")
Answer = TypeVar("Answer")


def run(
    work: Callable[[Context, *Given], Answer],
    context: Context,
    *given: *Given,
    gpu: bool = False,
) -> Answer:
    """Return `work(context, *given)` of a worker, with all threads that the settings leave one.

    Raises what it raises; RunError where the worker's machine does not reach the run.

    Args:
        gpu: It is given a GPU where workers get them.
    """
    found: Answer = ray.get(_begin(work, context, given, gpu=gpu))
    return found


def keep(
    work: Callable[[Context, *Given], tuple[Any, Any]], context: Context, *given: *Given
) -> tuple[Any, Any]:
    """Return the first of the two values of `work(context, *given)`, and a reference to the second.

    The second stays in Ray's object store, for other workers. Raises what `run` raises.
    """
    first, second = _begin(work, context, given, num_returns=2)
    return ray.get(first), second


def _begin(
    work: Callable[..., Any], context: Context, given: Any, *, gpu: bool = False, **options: Any
) -> Any:
    compute = context.config.compute
    resources = cluster.worker_resources(compute) if gpu else {"CPU": compute.cpus_per_worker}
    remote: Any = ray.remote(
        num_cpus=resources["CPU"], num_gpus=resources.get("GPU", 0), **options
    )(_work)
    own = ray.put(replace(context, tracked=MlflowRun(None, "")))  # its own has a connection
    return remote.remote(work, own, given)


def _work(work: Callable[..., Answer], context: Context, given: Any) -> Answer:
    before = torch.get_num_threads()
    threads.use(cluster.threads(context.config.compute))
    if not context.run.exists(IDENTITY):
        raise RunError(
            f"a worker does not find the run {context.run.root}",
            got=f"no such folder on {socket.gethostname()}",
            do="give --runs a URI, or a folder that all machines of the cluster share",
        )
    try:
        with forgetting_copies():  # of stages, which the next task of this process may find changed
            return work(context, *given)
    finally:
        torch.set_num_threads(before)


@contextmanager
def written_to(uri: str) -> Iterator[Path]:
    """Give a local folder for what is to lie at `uri`: that itself, or one that is copied there.

    It is made by the block, or before it where `uri` is local.
    """
    if is_local(uri):
        Path(uri).mkdir(parents=True, exist_ok=True)
        yield Path(uri)
        return
    with scratch.folder() as folder:
        whole = folder / "whole"
        whole.mkdir()
        yield whole
        for file in sorted(path for path in whole.rglob("*") if path.is_file()):
            name = file.relative_to(whole).as_posix()
            shards.write_file(posixpath.join(uri, name), file)
