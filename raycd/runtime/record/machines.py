"""What the machines of the cluster do while a stage runs, as MLflow's system metrics.

Each node of Ray tells Prometheus its use of CPUs, memory, disk, network and GPUs, for all that runs
there: workers of Ray Data and of Ray Train alike. The driver asks the nodes, so no worker needs to
reach MLflow.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import ray
from prometheus_client.parser import text_string_to_metric_families

from raycd import progress
from raycd.errors import TrackingError
from raycd.runtime import local_ray
from raycd.runtime.record.mlflow_run import MlflowRun

TIMEOUT = 2.0  # seconds until a machine counts as silent; the end of a stage may wait for one
# Ray's gauge -> MLflow's name of it, and how many of Ray's units one of MLflow's is.
_GAUGES = {
    "ray_node_cpu_utilization": ("cpu_utilization_percentage", 1),
    "ray_node_mem_used": ("system_memory_usage_megabytes", 1e6),
    "ray_node_disk_utilization_percentage": ("disk_usage_percentage", 1),
    "ray_node_network_receive_speed": ("network_receive_megabytes_per_second", 1e6),
    "ray_node_network_send_speed": ("network_transmit_megabytes_per_second", 1e6),
    "ray_node_gpus_utilization": ("gpu_{}_utilization_percentage", 1),
    "ray_node_gram_used": ("gpu_{}_memory_usage_megabytes", 1),
}


@contextmanager
def watched(run: MlflowRun, seconds: float) -> Iterator[None]:
    """Log the machines' metrics every so many seconds while the block runs; never, for 0.

    A machine that does not answer is told, and left out until the block ends.
    """
    if not run.run_id or not seconds or not ray.is_initialized():
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(run, seconds, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def parse(text: str) -> dict[str, float]:
    """Return MLflow's system metrics of a node from what it tells Prometheus."""
    own = "\n".join(line for line in text.splitlines() if line.startswith(tuple(_GAUGES)))
    found = {}
    for family in text_string_to_metric_families(own + "\n"):
        for sample in family.samples:
            if sample.name in _GAUGES and math.isfinite(sample.value):
                name, unit = _GAUGES[sample.name]
                found[name.format(sample.labels.get("GpuIndex", ""))] = sample.value / unit
    return found


def names(nodes: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return name -> URL of the metrics of each node of `ray.nodes()` that is alive."""
    alive = [node for node in nodes if node["Alive"]]
    hosts = Counter(node["NodeManagerAddress"] for node in alive)
    return {
        host if hosts[host] == 1 else f"{host}-{node['NodeID'][:8]}": (
            f"http://{f'[{host}]' if ':' in host else host}:{node['MetricsExportPort']}/metrics"
        )
        for node in alive
        for host in [node["NodeManagerAddress"]]
    }


def _watch(run: MlflowRun, seconds: float, ended: threading.Event) -> None:
    silent, is_away = set[str](), False
    with httpx.Client(timeout=TIMEOUT, trust_env=False) as http:
        while not ended.wait(seconds):
            found: dict[str, Any] = {}
            for name, url in names(ray.nodes()).items():  # type: ignore[no-untyped-call]  # Ray's
                if url in silent:
                    continue
                if ended.is_set():
                    return
                try:
                    measured = parse(http.get(url).raise_for_status().text)
                except httpx.HTTPError as error:
                    silent.add(url)
                    progress.say(f"warning: the system metrics of {url} cannot be read: {error}")
                    continue
                # A Ray of this job's own is one machine, which needs no name.
                found |= {name: measured} if local_ray.address() else measured
            try:
                run.log_machines(found)
            except TrackingError as error:
                if not is_away:
                    progress.say(f"warning: {error.what}: system metrics are left out meanwhile")
                is_away = True
