"""`ray job submit` of the main job to a real cluster on this machine, with a token."""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from raycd.config import Config, flatten

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
RAY = str(BIN / "ray")


@dataclass(frozen=True)
class Cluster:
    """Where jobs go, and the environment that has the token."""

    address: str
    environment: dict[str, str]


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head node of two CPUs with everything of its own: ports, folders, token."""
    names = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    place = Path(tempfile.mkdtemp(prefix="raycd-"))  # a short path: Ray makes sockets in it
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(place),
        "RAY_TMPDIR": str(place),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    options = [f"--{name}={port}" for name, port in ports.items()]
    options += ["--node-ip-address=127.0.0.1", "--num-cpus=2", "--min-worker-port=0", "--max-worker-port=0"]
    with open(place / "head.log", "w") as log:
        head = subprocess.Popen(
            [RAY, "start", "--head", "--block", *options], env=environment, stdout=log, stderr=log, cwd=place
        )
    try:
        address = f"http://127.0.0.1:{ports['dashboard-port']}"
        wait_for(address, environment["RAY_AUTH_TOKEN"], head, place / "head.log")
        yield Cluster(address, environment)
    finally:
        head.send_signal(signal.SIGTERM)
        head.wait(60)
        shutil.rmtree(place, ignore_errors=True)


def wait_for(address: str, token: str, head: subprocess.Popen[bytes], log: Path) -> None:
    request = urllib.request.Request(f"{address}/api/jobs/", headers={"Authorization": f"Bearer {token}"})
    until = time.monotonic() + 90
    while True:
        try:
            urllib.request.urlopen(request, timeout=5).close()
            return
        except OSError:
            if head.poll() is not None or time.monotonic() > until:
                pytest.fail(log.read_text())
            time.sleep(0.5)


def submit(cluster: Cluster, *job: str, **environment: str) -> tuple[int, str]:
    """Exit code of `ray job submit` and all that it says."""
    done = subprocess.run(
        [RAY, "job", "submit", "--address", cluster.address, "--working-dir", ".", "--", "python", *job],
        cwd=ROOT,
        env=cluster.environment | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
    )
    return done.returncode, done.stdout


def tiny_options(tiny_settings: dict[str, Any]) -> list[str]:
    tiny, default = flatten(Config.model_validate(tiny_settings)), flatten(Config())
    # Stage 2 trains on Ray Train just as stage 1 would.
    return [f"--{name}={tiny[name]}" for name in tiny if tiny[name] != default[name]] + ["--stage1.finetune=none"]


def test_the_main_job_succeeds_on_a_cluster(cluster: Cluster, tiny_settings: dict[str, Any], tmp_path: Path) -> None:
    options = tiny_options(tiny_settings)
    code, said = submit(cluster, "jobs/train.py", "--preset", "demo", *options, f"--runs={tmp_path}")
    assert code == 0, said
    assert "succeeded" in said
    assert "CLIP-CD" in said
    metrics = json.loads((tmp_path / "tiny" / "metrics.json").read_text())
    assert list(metrics["variants"]) == ["zero_shot", "fine_tuned", "clip_cd"]
    assert (tmp_path / "mlflow.db").exists()
    assert (tmp_path / "tiny" / "bundle" / "manifest.json").exists()


@pytest.mark.slow
def test_a_sweep_succeeds_on_a_cluster(cluster: Cluster, tiny_settings: dict[str, Any], tmp_path: Path) -> None:
    options = [*tiny_options(tiny_settings), "--samples=3", "--tune.seeds=2", f"--runs={tmp_path}"]
    code, said = submit(cluster, "tune/sweep.py", "--preset", "demo", *options)
    assert code == 0, said
    assert "succeeded" in said
    trials = [json.loads(path.read_text()) for path in sorted((tmp_path / "tiny-sweep" / "trials").iterdir())]
    assert [trial["number"] for trial in trials] == [0, 1, 2]
    assert all(trial["error"] is None for trial in trials)
    assert (tmp_path / "tiny-sweep" / "best.yaml").exists()


def test_a_users_mistake_fails_the_job_with_its_message(cluster: Cluster) -> None:
    code, said = submit(cluster, "jobs/train.py", "--preset", "demo", "--stage2.epoch", "3")
    assert code != 0
    assert re.search("did you mean .*--stage2.epochs", said)
    assert "Traceback" not in said


def test_without_the_token_a_job_is_refused(cluster: Cluster) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{cluster.address}/api/jobs/", timeout=10)
    assert caught.value.code == 401
    code, said = submit(cluster, "jobs/train.py", "--preset", "demo", RAY_AUTH_MODE="disabled")
    assert code != 0
    assert "401" in said or "token" in said
