"""Values of RAY_ADDRESS, and a start of Ray that takes too long."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raycd.config import ComputeConfig, cli
from raycd.errors import ConfigError, RunError
from raycd.runtime import cluster, local_ray, private

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "given", ["10.0.0.1:6379", "head:6379", "[fd00::1]:6379", "ray://10.0.0.1:10001", "auto"]
)
def test_addresses_of_clusters(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", given)
    assert local_ray.address() == given


@pytest.mark.parametrize("given", ["", " ", "local"])
def test_no_address_means_a_ray_of_our_own(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", given)
    assert local_ray.address() == ""


@pytest.mark.parametrize(
    "given",
    [
        "http://127.0.0.1:8265",
        "foo",
        "foo:bar",
        "foo:",
        ":6379",
        "a:0",
        "a:65536",
        "::1:6379",
        "a b:6379",
    ],
)
@pytest.mark.parametrize("command", ["jobs/train.py", "serve/app.py"])
def test_other_addresses_are_one_message_before_any_work(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    given: str,
    command: str,
) -> None:
    from jobs import train
    from serve import app

    monkeypatch.setenv("RAY_ADDRESS", given)
    runs = tmp_path / "runs"
    if command == "serve/app.py":
        code = app.main(["--bundle", str(tmp_path)])
    else:
        code = cli.run(
            train.main, ["--preset", "demo", "--runs", str(runs)], prog=command, description=""
        )
    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    assert said.err.startswith(
        f"error: RAY_ADDRESS is not the address of a Ray cluster\n  got:      {given}\n"
    )
    assert ("ray job submit --address http" in said.err) == given.startswith("http")
    assert not runs.exists()


BUSY = """
import sys

import psutil
from ray._private import services

from raycd.runtime import cluster

ask, asked, late = services.get_node, [], int(sys.argv[1])

def get_node(*arguments):
    # A raylet that has not registered yet, as long as this Ray is one of the first `late`.
    if arguments[0] not in asked:
        asked.append(arguments[0])
    if len(asked) <= late:
        started.update(psutil.Process().children(recursive=True))
        raise Exception("The current node timed out during startup.")
    return ask(*arguments)

services.get_node, started = get_node, set()
try:
    with cluster.connected():
        import ray

        print(ray.get(ray.remote(num_cpus=0.5)(lambda: "works").remote()))
finally:
    print(len(started) > 0, not any(process.is_running() for process in started))
"""


def test_a_worker_for_which_there_is_no_room_is_refused_and_not_waited_for(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = ComputeConfig(cpus_per_worker=64)
    message = (
        r"compute.cpus_per_worker is more than this machine has\s+got: +64\s+expected: at most 2"
    )
    with pytest.raises(ConfigError, match=message), cluster.connected(many):
        pass
    with cluster.connected(ComputeConfig()):
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # a cluster may grow
        with cluster.connected(many):
            pass
        monkeypatch.delenv("RAY_ADDRESS")
        monkeypatch.setattr(cluster, "_resources", lambda: {"CPU": 64.0, "GPU": 1.0})
        with cluster.connected(many):
            pass
        trial = {"cpu": 1.0, "gpu": 2.0}  # as Ray Tune calls them
        with pytest.raises(ConfigError, match=r"tune\.gpus_per_trial is more"):
            cluster.check_room(trial, "tune.{}s_per_trial")


def test_a_worker_has_its_share_of_a_machine_however_many_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machines = [{"CPU": 16.0}] * 3 + [{"CPU": 8.0}]
    monkeypatch.setattr(cluster, "_working", lambda: machines)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    each = [cluster.threads_each(ComputeConfig(), workers) for workers in (1, 4, 5, 8, 100)]
    assert each == [8, 8, 4, 4, 1]
    assert cluster.threads_each(ComputeConfig(threads=3), 8) == 3


@pytest.mark.slow
@pytest.mark.parametrize("late", [1, 2])
def test_a_start_that_takes_too_long_is_tried_again_and_leaves_no_process(late: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BUSY, str(late)],
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (
        "Ray has not started in its time, this machine is busy: once more, with more time"
        in done.stderr
    )
    if late == 1:
        assert done.stdout == "works\nTrue True\n", done.stderr
    else:
        assert done.stdout == "True True\n"
        assert "raycd.errors.RunError: Ray did not start on this machine" in done.stderr
        assert "  got:      The current node timed out during startup." in done.stderr


def test_ray_may_be_given_longer_for_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import services

    asked: list[str] = []

    def registers_late(address: str) -> str:
        asked.append(address)
        if len(asked) < 3:
            raise RuntimeError("no node yet")
        return "node"

    ray_services: Any = services
    monkeypatch.setattr(services, "get_node", registers_late)
    with private.patient_start(60):
        assert ray_services.get_node("gcs") == "node"
    assert ray_services.get_node is registers_late
    asked.clear()
    with private.patient_start(0), pytest.raises(RuntimeError, match="no node yet"):
        ray_services.get_node("gcs")


def test_a_temporary_folder_that_cannot_be_made_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "file" / "ray"))
    with pytest.raises(RunError, match="no temporary folder for Ray"), local_ray.connected():
        pytest.fail("it started")


def test_rays_sockets_fit_where_the_unit_for_systemd_has_them() -> None:
    unit = re.search(r"^\[Unit\].*?^```", (ROOT / "docs/serving.md").read_text(), re.M | re.S)
    assert unit is not None
    settings = dict(re.findall(r"^(\w+)=(.*)", unit[0], re.M))
    folder = f"/var/lib/{settings['StateDirectory']}"  # neither /tmp nor memory
    assert settings["Environment"] == f"RAY_TMPDIR={folder}"
    assert folder in settings["ExecStartPre"]
    assert not local_ray._is_unfit(f"{folder}/raycd-12345678")
