"""The Ray cluster that a job works on: the one it was submitted to, or a local one of its own."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import ray

from raycd import cli
from raycd.config import ComputeConfig
from raycd.errors import ConfigError, RunError
from raycd.runtime import watch


@contextmanager
def connected() -> Iterator[None]:
    """Be connected to Ray inside of the block.

    RAY_ADDRESS (set for submitted jobs) names the cluster; without it a local one is started and ended. A connection
    that is already there is used and left alone. Raises RunError where the named cluster does not answer.
    """
    if ray.is_initialized():
        yield
        return
    # Processes ask Ray Train for news every two seconds unless told otherwise: too seldom for epochs of a second.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        # A cluster of this process alone, on this machine, without a dashboard: nobody else has a token for it, and
        # making one would write into the user's HOME.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        # Ray Data's actor pools make Ray print a line at level ERROR that means nothing here (ray issue 53727).
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except ConnectionError as error:
        raise RunError(
            f"the Ray cluster at {address} does not answer",
            got=str(error).splitlines()[0],
            do="start it, or unset RAY_ADDRESS to work on this machine",
        ) from error
    try:
        with cli.sigterm_interrupts(), watch.ray_lives():  # ray.init has put a handler of its own in place
            yield
    finally:
        ray.shutdown()


def uses_gpu(compute: ComputeConfig) -> bool:
    """Whether workers get GPUs. Raises ConfigError where they are asked for and cannot come.

    A cluster that a job was submitted to may start GPU nodes when they are asked for; this machine alone cannot.
    """
    if compute.device == "cpu":
        return False
    gpus = float(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]
    if compute.device == "gpu" and gpus == 0 and not os.environ.get("RAY_ADDRESS"):
        raise ConfigError(
            "compute.device is gpu, but this machine has no GPU",
            got=f"{gpus:g} GPUs",
            do="give --compute.device auto or cpu, or submit the job to a cluster with GPUs",
        )
    return gpus > 0 or compute.device == "gpu"


def worker_resources(compute: ComputeConfig) -> dict[str, float]:
    """What Ray reserves for one worker: {"CPU": ..., "GPU": ...}."""
    resources = {"CPU": compute.cpus_per_worker}
    if uses_gpu(compute):
        resources["GPU"] = compute.gpus_per_worker
    return resources


def fitting(wanted: int, resources: Mapping[str, float]) -> int:
    """`wanted` workers of `resources` each, or as many as fit: a pool that cannot start would wait for ever.

    A resource of which the cluster has nothing yet does not count: it comes with the nodes that the work calls for.
    """
    have = ray.cluster_resources()  # type: ignore[no-untyped-call]
    fits = [int(have[name] / need) for name, need in resources.items() if have.get(name, 0) > 0]
    return max(1, min([wanted, *fits]))


def machines() -> int:
    """How many machines of the cluster run work."""
    return max(1, sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes()))  # type: ignore[no-untyped-call]


def cpus() -> int:
    """The cluster's CPUs, at least one."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))  # type: ignore[no-untyped-call]


def threads(compute: ComputeConfig, workers: int) -> int:
    """Threads of torch and FAISS in each of `workers` workers: as set, or an even share of this machine's cores."""
    return compute.threads or max(1, (os.cpu_count() or 1) // workers)
