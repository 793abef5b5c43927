"""cluster.yaml is valid for the pinned Ray: CPU head, GPU workers from zero, a token."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from raycd import program
from raycd.config import ComputeConfig
from raycd.errors import ConfigError
from raycd.runtime.cluster import check_least, fitting
from tests.test_packaging import pins

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    """Return the file as Ray's launcher sees it, with Ray's defaults for AWS filled in."""
    config: dict[str, Any] = prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
    return config


def workers(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        kind
        for name, kind in cluster["available_node_types"].items()
        if name != cluster["head_node_type"]
    ]


def start_commands(cluster: dict[str, Any]) -> list[str]:
    commands: list[str] = cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]
    return [command for command in commands if "ray start" in command]


def test_ray_accepts_the_file(cluster: dict[str, Any]) -> None:
    validate_config(cluster)


def test_head_has_no_gpu_and_is_alone(cluster: dict[str, Any]) -> None:
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"] == {"CPU": 8}
    assert head["node_config"]["InstanceType"].startswith(("m6i.", "m7i.", "c6i.", "r6i."))
    assert head["max_workers"] == 0


def test_gpu_workers_scale_from_zero_and_back(cluster: dict[str, Any]) -> None:
    assert workers(cluster)
    for kind in workers(cluster):
        assert kind["resources"]["GPU"] >= 1
        assert kind["min_workers"] == 0
        assert kind["max_workers"] >= 1
    assert 0 < cluster["idle_timeout_minutes"] <= 30
    assert cluster["provider"]["cache_stopped_nodes"] is False


def test_every_node_starts_with_the_token(cluster: dict[str, Any]) -> None:
    assert len(start_commands(cluster)) == 2
    for command in start_commands(cluster):
        assert "RAY_AUTH_MODE=token ray start" in command
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_dashboard_listens_on_loopback_only(cluster: dict[str, Any]) -> None:
    (head_start,) = [command for command in start_commands(cluster) if "--head" in command]
    assert "--dashboard-host=127.0.0.1" in head_start


def test_nodes_install_from_the_lock(cluster: dict[str, Any]) -> None:
    for path in cluster["file_mounts"].values():
        assert path.startswith("~") or (ROOT / path).is_file(), f"{path} does not exist"
    file = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    assert not {"head_setup_commands", "worker_setup_commands"} & file.keys()
    own = file["setup_commands"]
    assert own[-1] == "make -C ~/raycd setup"  # and nothing beside the lock
    assert cluster["worker_setup_commands"] == own
    assert cluster["head_setup_commands"][: len(own)] == own  # then what Ray's launcher needs
    assert {"boto3", "s3fs"} <= set(pins("all"))  # of the launcher on the head, and for s3://


def test_file_holds_no_secret_and_no_account(cluster: dict[str, Any]) -> None:
    assert "auth_token" not in str(cluster["provider"])
    for kind in cluster["available_node_types"].values():
        assert kind["node_config"]["ImageId"] == "ami-" + 17 * "0"


def test_no_machine_alone_waits_for_workers_that_it_never_gets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("raycd.runtime.cluster._working", lambda: [{"CPU": 2.0}])
    monkeypatch.setattr("raycd.runtime.cluster._resources", lambda: {"CPU": 2.0})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def compute(least: int) -> ComputeConfig:
        return ComputeConfig.model_validate({"train_workers": {"min": least, "max": 8}})

    check_least(compute(4))
    check_least(compute(5), 3)  # a batch is not enough for more
    with pytest.raises(ConfigError) as caught:
        check_least(compute(5))
    assert str(caught.value) == (
        "compute.train_workers has a min that this machine has no room for\n"
        "  got:      5 workers\n"
        "  expected: at most 4 of 0.5 CPU\n"
        "  to do:    lower it, or submit the job to a cluster"
    )
    monkeypatch.setenv("RAY_ADDRESS", "ray.example.org:6379")  # that may grow
    check_least(compute(5))


def test_a_worker_fits_on_one_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machines = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 1.0}]
    monkeypatch.setattr("raycd.runtime.cluster._working", lambda: machines)
    monkeypatch.setattr("raycd.runtime.cluster._resources", lambda: {"CPU": 12.0, "GPU": 3.0})
    assert fitting(8, {"CPU": 1, "GPU": 0.75}) == 3  # 4 by the sums
    assert fitting(2, {"CPU": 1, "GPU": 0.75}) == 2
    assert fitting(8, {"CPU": 2, "GPU": 0}) == 6
    two_cards = [{"CPU": 8.0, "GPU": 2.0}]
    monkeypatch.setattr("raycd.runtime.cluster._working", lambda: two_cards)
    assert fitting(8, {"CPU": 1, "GPU": 0.6}) == 2  # a share is of one card
    assert fitting(8, {"CPU": 1, "GPU": 0.4}) == 4
    monkeypatch.setattr("raycd.runtime.cluster._working", lambda: machines)
    assert "waiting" not in capsys.readouterr().err
    assert fitting(8, {"CPU": 1, "GPU": 2}) == 1
    assert "waiting for a machine with 1 CPU, 2 GPU" in capsys.readouterr().err
    monkeypatch.setattr("raycd.runtime.cluster._resources", lambda: {"CPU": 12.0})
    assert fitting(8, {"CPU": 1, "GPU": 1}) == 8  # machines with GPUs come on demand


def test_a_worker_of_ray_that_is_killed_is_told_in_one_message(
    ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    @ray.remote(max_retries=0)
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    assert program.guard(lambda: ray.get(die.remote()), []) == program.EXIT_MISTAKE
    said = capsys.readouterr().err
    assert said.startswith("error: a worker of Ray has died\n  got:      WorkerCrashedError: ")
    assert said.endswith("then run the same command again to continue\n")
