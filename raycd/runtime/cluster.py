"""The Ray cluster that a job works on, and how many workers of which size it gets there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray

from raycd import progress
from raycd.config import ComputeConfig, cli
from raycd.errors import ConfigError
from raycd.model.threads import usable_cpus
from raycd.runtime import local_ray, private


@contextmanager
def connected(compute: ComputeConfig | None = None) -> Iterator[None]:
    """Be connected to Ray inside of the block.

    RAY_ADDRESS (set for submitted jobs) names the cluster; without it a local one is started and
    ended. An open connection is used and left alone.

    Args:
        compute: What the workers of the block are like.

    Raises:
        RunError: A connection cannot be opened.
        ConfigError: There is no room for such a worker.
    """
    with _connected():
        if compute is not None:
            check_room(worker_resources(compute), "compute.{}s_per_worker")
        yield


@contextmanager
def _connected() -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    # Ray Train sees every two seconds by default whether a training is over. It asks each worker.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")
    # sigterm_interrupts again: ray.init has replaced its handler.
    with local_ray.connected(), cli.sigterm_interrupts():
        yield


def warn_of_working_copy(folder: str) -> None:
    """Warn of a job submitted with --working-dir: Ray deletes its copy some time after its end."""
    if "/runtime_resources/working_dir_files/" in folder:
        progress.say(
            f"warning: {folder} lies in this job's copy of the working folder, "
            "which Ray deletes: give --runs a folder outside of it, or a URI"
        )


def uses_gpu(compute: ComputeConfig) -> bool:
    """Return whether workers get GPUs.

    A cluster that a job was submitted to may start GPU nodes on demand; this machine alone cannot.

    Raises:
        ConfigError: GPUs are asked for on a machine without one.
    """
    if compute.device == "cpu":
        return False
    gpus = _resources().get("GPU", 0.0)
    if compute.device == "gpu" and gpus == 0 and not local_ray.address():
        raise ConfigError(
            "compute.device is gpu, but this machine has no GPU",
            got=f"{gpus:g} GPUs",
            do="give --compute.device auto or cpu, or submit the job to a cluster with GPUs",
        )
    return gpus > 0 or compute.device == "gpu"


def worker_resources(compute: ComputeConfig) -> dict[str, float]:
    """Return what Ray reserves for one worker: {"CPU": ..., "GPU": ...}."""
    resources = {"CPU": compute.cpus_per_worker}
    if uses_gpu(compute):
        resources["GPU"] = compute.gpus_per_worker
    return resources


def check_room(resources: Mapping[str, float], setting: str) -> None:
    """Raise ConfigError where a worker or trial needs more than this machine has.

    Ray would wait for ever. A cluster that a job was submitted to may grow.

    Args:
        resources: As of `worker_resources`.
        setting: What says them, such as "compute.{}s_per_worker".
    """
    if local_ray.address():
        return
    have = _resources()
    for name, need in resources.items():
        named, there = setting.format(name.lower()), have.get(name.upper(), 0.0)
        if need > there:
            raise ConfigError(
                f"{named} is more than this machine has",
                got=f"{need:g}",
                expected=f"at most {there:g}",
                do=f"lower {named}, or submit the job to a cluster",
            )


def check_least(compute: ComputeConfig, most: int | None = None) -> None:
    """Raise ConfigError where this machine, which does not grow, lacks room for the least workers.

    Ray Train would wait for them for ever. `most` are as many as there will be, whatever is set.
    """
    if isinstance(compute.train_workers, int) or local_ray.address():
        return
    least, resources = compute.train_workers["min"], worker_resources(compute)
    least = min(least, most or least)
    if (room := fitting(least, resources)) < least:
        raise ConfigError(
            "compute.train_workers has a min that this machine has no room for",
            got=f"{least} workers",
            expected=f"at most {room} of "
            + ", ".join(f"{need:g} {name}" for name, need in resources.items()),
            do="lower it, or submit the job to a cluster",
        )


def fitting(wanted: int, resources: Mapping[str, float]) -> int:
    """Return `wanted` workers of `resources` each, or as many as fit: others would be waited for.

    A worker is on one machine. A resource of which the cluster has nothing yet does not count: its
    nodes come on demand.
    """
    have = _resources()
    needed = {name: need for name, need in resources.items() if have.get(name, 0) > 0 and need > 0}
    if not needed:
        return wanted
    fits = _fits(needed, _working())
    if not fits:
        shown = ", ".join(f"{need:g} {name}" for name, need in resources.items())
        progress.say(f"waiting for a machine with {shown}: the cluster has none yet")
    return max(1, min(wanted, fits))


def free_room(resources: Mapping[str, float]) -> int:
    """Return how many workers of `resources` each there is room for beside what runs now."""
    needed = {name: need for name, need in resources.items() if need > 0}
    return _fits(needed, private.free_resources())


def _fits(needed: Mapping[str, float], machines: Iterable[Mapping[str, float]]) -> int:
    return sum(
        min(_room(name, machine.get(name, 0), need) for name, need in needed.items())
        for machine in machines
    )


def _room(name: str, there: float, need: float) -> int:
    """Return how many times there is `need` of a resource; a part of a GPU is of a single one."""
    if name == "GPU" and need < 1:
        return int(there) * int(1 / need)
    return int(there / need)


def machines() -> int:
    """Return the number of machines of the cluster that run work, at least one."""
    return max(1, len(_working()))


def cpus() -> int:
    """Return the number of the cluster's CPUs, at least one."""
    return max(1, int(_resources().get("CPU", 1)))


def memory() -> int:
    """Return the bytes that the machine with most of them has for work, beside its object store."""
    return max((int(resources.get("memory", 0)) for resources in _working()), default=0)


def threads(compute: ComputeConfig, workers: int = 1) -> int:
    """Return the threads of torch and FAISS in a worker that has a machine with `workers` in all.

    As set, or a share of the cores; it is asked in the worker.
    """
    return compute.threads or max(1, usable_cpus() // workers)


def threads_each(compute: ComputeConfig, workers: int) -> int:
    """Return the same for each of the cluster's workers, asked before there are any.

    The machine with the fewest CPUs decides.
    """
    least: float = usable_cpus()
    if local_ray.address():  # other machines than this one
        least = min((resources["CPU"] for resources in _working()), default=least)
    return compute.threads or max(1, int(least) // -(-workers // machines()))


def _working() -> list[dict[str, float]]:
    """Return the resources of each machine that runs work."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    return [resources for resources in alive if resources.get("CPU", 0) > 0]


def _resources() -> dict[str, float]:
    found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray's
    return found
