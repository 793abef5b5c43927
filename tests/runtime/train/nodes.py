"""A Ray cluster of several raylets on this machine, whose nodes come and go, and its trainings."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from raycd.runtime.train.checkpoints import Checkpoints
from raycd.runtime.train.failures import FILE
from tests.processes import ROOT

QUICKLY = {  # what Ray waits for, shorter
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5",
}


@dataclass
class Nodes:
    """A head without CPUs, for drivers and the controller of Ray Train, and the workers' nodes."""

    cluster: Any
    environment: dict[str, str]
    nodes: list[Any] = field(default_factory=list)

    def add(self) -> None:
        """Start a node of one CPU."""
        self.nodes.append(self.cluster.add_node(num_cpus=1))

    def of(self, process: int) -> Any:
        """Return the node whose raylet has started a worker."""
        parents = {parent.pid for parent in psutil.Process(process).parents()}
        return next(node for node in self.nodes if raylet(node) in parents)

    def kill(self, node: Any) -> None:
        """Kill -9 a node's raylet."""
        os.kill(raylet(node), signal.SIGKILL)
        self.nodes.remove(node)

    def terminate(self, node: Any) -> None:
        """Send a node's raylet a SIGTERM."""
        os.kill(raylet(node), signal.SIGTERM)
        self.nodes.remove(node)


def raylet(node: Any) -> int:
    number: int = node.all_processes["raylet"][0].process.pid
    return number


@contextmanager
def cluster_of(count: int) -> Iterator[Nodes]:
    """Run a head and so many nodes of one CPU each."""
    root = tempfile.mkdtemp(prefix="raycd-")  # a short path: Ray makes sockets in it
    before = {name: os.environ.get(name) for name in QUICKLY}
    os.environ.update(QUICKLY)
    cluster: Any = Cluster()
    try:
        cluster.add_node(num_cpus=0, include_dashboard=False, temp_dir=root)
        environment = {"RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": os.environ["RAY_AUTH_MODE"]}
        nodes = Nodes(cluster, environment | QUICKLY)
        for _ in range(count):
            nodes.add()
        yield nodes
    finally:
        cluster.shutdown()
        shutil.rmtree(root, ignore_errors=True)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class Training:
    """The training of `surviving.py` as a process, which can be started several times.

    Args:
        folder: Of its runs, checkpoints, logs and record.
    """

    def __init__(self, folder: Path, nodes: Nodes, *, store: str = "", **inputs: Any) -> None:
        self.folder, self._nodes = folder, nodes
        self.store = Path(store or folder / "store")
        self.inputs = {"pace": 0.05, "log": str(folder / "steps"), **inputs}
        self.settings: dict[str, Any] = {
            "name": "toy",
            "runs": str(folder),
            "compute": {"cpus_per_worker": 1.0, "threads": 1},
            "train": {"checkpoint_minutes": 0.01},
            "tracking": {"every_steps": 1},
        }
        self.more: dict[str, Any] = {"run": ""}
        self._process: subprocess.Popen[str] | None = None

    def start(self, **environment: str) -> None:
        """Start it, or start it again."""
        spec = {
            "config": self.settings,
            "inputs": self.inputs,
            "storage": str(self.store),
            "out": str(self.folder / "out.json"),
            **self.more,
        }
        (self.folder / "spec.json").write_text(json.dumps(spec))
        inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.runtime.train.surviving", str(self.folder / "spec.json")],
            cwd=ROOT,
            env=inherited | {"PYTHONPATH": str(ROOT)} | self._nodes.environment | environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def kill(self) -> None:
        """Kill -9 the driver."""
        assert self._process is not None
        self._process.kill()
        self._process.communicate()

    def ended(self) -> tuple[int, str]:
        """Wait for its end; return its exit code and what it said."""
        assert self._process is not None
        try:
            _, said = self._process.communicate(timeout=240)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.returncode, said

    def result(self) -> dict[str, Any]:
        """Return what it has found."""
        found: dict[str, Any] = json.loads((self.folder / "out.json").read_text())
        return found

    def workers(self) -> dict[int, int]:
        """Return the process of each worker that was there last, by rank."""
        logs = sorted(self.folder.glob("steps-*"), key=lambda path: path.stat().st_mtime)
        return {int(log.name.split("-")[1]): int(log.name.split("-")[2]) for log in logs}

    def wait_for(self, happens: Callable[[], Any], seconds: float = 120) -> Any:
        """Return what `happens` gives, once it gives something, while the process runs."""
        until = time.monotonic() + seconds
        assert self._process is not None
        while not (found := happens()):
            if self._process.poll() is not None or time.monotonic() > until:
                self._process.kill()
                raise AssertionError(self._process.communicate()[1])
            time.sleep(0.05)
        return found

    def checkpoint_inside_of(self, epoch: int) -> Path:
        """Wait for a checkpoint inside of an epoch, from 1, and return it."""
        pattern = f"toy/epoch-{epoch - 1:04d}-step-*"
        return Path(self.wait_for(lambda: sorted(self.store.glob(pattern)))[-1])

    def went_on_with(self, workers: int) -> bool:
        """Tell whether it has gone on with so many workers."""
        failures = Checkpoints(str(self.store / "toy")).read_json(FILE) or []
        return workers in [failure.get("workers") for failure in failures]
