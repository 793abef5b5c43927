"""The Ray cluster that a job works on, and how its work is shared out there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import ray

from raycd.config import ComputeConfig, cli
from raycd.errors import ConfigError
from raycd.runtime import local_ray


@contextmanager
def connected() -> Iterator[None]:
    """Be connected to Ray inside of the block.

    RAY_ADDRESS (set for submitted jobs) names the cluster; without it a local one is started and
    ended. A connection that is already there is used and left alone. Raises RunError where there is
    no connection to be had.
    """
    if ray.is_initialized():
        yield
        return
    # Processes ask Ray Train for news every two seconds unless told otherwise: too seldom for
    # epochs of a second.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
    with (
        local_ray.connected(),
        cli.sigterm_interrupts(),
    ):  # ray.init has put a handler of its own in place
        yield


def uses_gpu(compute: ComputeConfig) -> bool:
    """Whether workers get GPUs. Raises ConfigError where they are asked for and cannot come.

    A cluster that a job was submitted to may start GPU nodes when they are asked for; this machine
    alone cannot.
    """
    if compute.device == "cpu":
        return False
    gpus = float(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]
    if compute.device == "gpu" and gpus == 0 and not local_ray.address():
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
    """`wanted` workers of `resources` each, or as many as fit: a pool that cannot start would wait
    for ever.

    A resource of which the cluster has nothing yet does not count: it comes with the nodes that the
    work calls for.
    """
    have = ray.cluster_resources()  # type: ignore[no-untyped-call]
    fits = [int(have[name] / need) for name, need in resources.items() if have.get(name, 0) > 0]
    return max(1, min([wanted, *fits]))


def machines() -> int:
    """How many machines of the cluster run work."""
    return max(
        1, sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())
    )  # type: ignore[no-untyped-call]


def cpus() -> int:
    """The cluster's CPUs, at least one."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))  # type: ignore[no-untyped-call]


def threads(compute: ComputeConfig, workers: int) -> int:
    """Threads of torch and FAISS in each of `workers` workers: as set, or an even share of this
    machine's cores.
    """
    return compute.threads or max(1, (os.cpu_count() or 1) // workers)
