"""The system metrics of the machines in the MLflow record."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
from mlflow import MlflowClient

from raycd.config import Config
from raycd.runtime import local_ray
from raycd.runtime.record import machines
from raycd.runtime.record.tracking import Tracker

GPUS = """\
# TYPE ray_node_cpu_utilization gauge
ray_node_cpu_utilization{ip="10.0.0.2",Version="2.60.0"} 37.5
ray_node_cpu_count{ip="10.0.0.2"} 16
ray_node_mem_used{ip="10.0.0.2"} 2.5e+09
ray_node_gpus_utilization{GpuDeviceName="H200",GpuIndex="0",ip="10.0.0.2"} 80
ray_node_gpus_utilization{GpuDeviceName="H200",GpuIndex="1",ip="10.0.0.2"} NaN
ray_node_gram_used{GpuDeviceName="H200",GpuIndex="0",ip="10.0.0.2"} 1024
"""


def logged(client: MlflowClient, run_id: str) -> dict[str, float]:
    metrics = client.get_run(run_id).data.metrics
    return {name: value for name, value in metrics.items() if name.startswith("system/")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def client(runs: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{runs}/mlflow.db")


def waited(ready: Callable[[], object]) -> None:
    for _ in range(300):
        if ready():
            return
        time.sleep(0.1)
    pytest.fail("nothing came in half a minute")


def test_a_stage_that_runs_has_the_metrics_of_its_machine_until_it_ends(
    ray_cluster: None, runs: Path, client: MlflowClient
) -> None:
    with Tracker.open(Config(), runs) as tracker, tracker.stage("embed") as stage:
        with machines.watched(stage, 0.2):
            waited(lambda: len(logged(client, stage.run_id)) >= 5)
        found = logged(client, stage.run_id)
        history = client.get_metric_history(stage.run_id, "system/cpu_utilization_percentage")
        time.sleep(0.5)
        assert logged(client, stage.run_id) == found
        assert [metric.step for metric in history] == list(range(history[-1].step + 1))
    assert 0 <= found["system/cpu_utilization_percentage"] <= 100
    assert 100 < found["system/system_memory_usage_megabytes"] < 10_000_000
    assert 0 < found["system/disk_usage_percentage"] < 100


def test_a_stage_that_goes_on_has_no_step_twice(
    ray_cluster: None, runs: Path, client: MlflowClient
) -> None:
    def steps(run_id: str) -> list[int]:
        history = client.get_metric_history(run_id, "system/cpu_utilization_percentage")
        return [metric.step for metric in history]

    with Tracker.open(Config(), runs) as tracker:
        first = tracker.stage("toy", "mark")
        with machines.watched(first, 0.2):
            waited(lambda: len(steps(first.run_id)) >= 2)
        second = tracker.stage("toy", "mark")  # the first one's process was killed
        with machines.watched(second, 0.2):
            waited(lambda: len(steps(second.run_id)) >= 4)
    assert second.run_id == first.run_id
    assert steps(first.run_id) == list(range(len(steps(first.run_id))))


def test_no_seconds_and_no_record_measure_nothing(
    ray_cluster: None, runs: Path, client: MlflowClient
) -> None:
    with Tracker.open(Config(), runs) as tracker:
        with tracker.stage("mine") as stage, machines.watched(stage, 0):
            time.sleep(0.3)
        assert logged(client, stage.run_id) == {}
    nowhere = Config.model_validate({"tracking": {"enabled": False}})
    with Tracker.open(nowhere, runs) as tracker, machines.watched(tracker, 0.01):
        time.sleep(0.1)


def test_gpus_have_a_number_and_what_is_not_measured_is_left_out() -> None:
    assert machines.parse(GPUS) == {
        "cpu_utilization_percentage": 37.5,
        "system_memory_usage_megabytes": 2500.0,
        "gpu_0_utilization_percentage": 80.0,
        "gpu_0_memory_usage_megabytes": 1024.0,
    }


def test_machines_are_named_by_address_and_two_raylets_of_one_by_their_ids_too() -> None:
    def node(host: str, number: int, *, alive: bool = True) -> dict[str, object]:
        port = 9000 + number
        about = {"NodeManagerAddress": host, "NodeID": f"{number}" * 56, "Alive": alive}
        return about | {"MetricsExportPort": port}

    nodes = [node("10.0.0.2", 1), node("10.0.0.3", 2), node("10.0.0.3", 3), node("::1", 4)]
    assert machines.names([*nodes, node("10.0.0.2", 5, alive=False)]) == {
        "10.0.0.2": "http://10.0.0.2:9001/metrics",
        "10.0.0.3-22222222": "http://10.0.0.3:9002/metrics",
        "10.0.0.3-33333333": "http://10.0.0.3:9003/metrics",
        "::1": "http://[::1]:9004/metrics",
    }


def test_a_silent_machine_is_told_once_and_the_others_are_logged(
    ray_cluster: None,
    runs: Path,
    client: MlflowClient,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's
    silent = {
        **own[0],
        "NodeID": "silent",
        "NodeManagerAddress": "127.0.0.2",
        "MetricsExportPort": 1,
    }
    monkeypatch.setattr(ray, "nodes", lambda: [*own, silent])
    monkeypatch.setattr(local_ray, "address", lambda: "127.0.0.1:6379")
    host = own[0]["NodeManagerAddress"]
    with Tracker.open(Config(), runs) as tracker, tracker.stage("embed") as stage:
        with machines.watched(stage, 0.2):
            name = f"system/{host}/cpu_utilization_percentage"
            waited(lambda: len(client.get_metric_history(stage.run_id, name)) > 1)
        assert {name.split("/")[1] for name in logged(client, stage.run_id)} == {host}
    said = [line for line in capsys.readouterr().err.splitlines() if "127.0.0.2:1" in line]
    assert [line.partition(" cannot be read")[0] for line in said] == [
        "warning: the system metrics of http://127.0.0.2:1/metrics"
    ]
