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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from s3fs import S3FileSystem

from raycd import bundle
from raycd.config import Config, flatten
from raycd.run import local_copy

ROOT = Path(__file__).parents[2]
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
    """Start a head node of two CPUs with ports, folders and token of its own."""
    names = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    root = Path(tempfile.mkdtemp(prefix="raycd-"))  # a short path: Ray makes sockets in it
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("RAY_")
    } | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(root),
        "RAY_TMPDIR": str(root),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    options = [f"--{name}={port}" for name, port in ports.items()]
    options += [
        "--node-ip-address=127.0.0.1",
        "--num-cpus=2",
        "--min-worker-port=0",
        "--max-worker-port=0",
    ]
    with open(root / "head.log", "w") as log:
        head = subprocess.Popen(
            [RAY, "start", "--head", "--block", *options],
            env=environment,
            stdout=log,
            stderr=log,
            cwd=root,
        )
    try:
        address = f"http://127.0.0.1:{ports['dashboard-port']}"
        wait_for(address, environment["RAY_AUTH_TOKEN"], head, root / "head.log")
        yield Cluster(address, environment)
    finally:
        head.send_signal(signal.SIGTERM)
        head.wait(60)
        shutil.rmtree(root, ignore_errors=True)


def wait_for(address: str, token: str, head: subprocess.Popen[bytes], log: Path) -> None:
    request = urllib.request.Request(
        f"{address}/api/jobs/", headers={"Authorization": f"Bearer {token}"}
    )
    until = time.monotonic() + 90
    while True:
        try:
            urllib.request.urlopen(request, timeout=5).close()
            return
        except OSError:
            if head.poll() is not None or time.monotonic() > until:
                pytest.fail(log.read_text())
            time.sleep(0.5)


def submit(
    cluster: Cluster, *job: str, options: Sequence[str] = (), **environment: str
) -> tuple[int, str]:
    """Exit code of `ray job submit` and all that it says."""
    done = subprocess.run(
        [
            RAY,
            "job",
            "submit",
            "--address",
            cluster.address,
            "--working-dir",
            ".",
            *options,
            "--",
            "python",
            *job,
        ],
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
    return [f"--{name}={tiny[name]}" for name in tiny if tiny[name] != default[name]]


def ask(cluster: Cluster, method: str, path: str) -> Any:
    """Return what Ray's job server answers."""
    token = {"Authorization": f"Bearer {cluster.environment['RAY_AUTH_TOKEN']}"}
    request = urllib.request.Request(cluster.address + path, headers=token, method=method)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def wait_until(happens: Callable[[], Any], seconds: float) -> Any:
    """Return what `happens` gives, once it gives something."""
    until = time.monotonic() + seconds
    while not (found := happens()):
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.2)
    return found


@pytest.mark.slow
def test_the_main_job_succeeds_on_a_cluster(
    cluster: Cluster, tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    # Stage 2 trains on Ray Train just as stage 1 would.
    options = [*tiny_options(tiny_settings), "--stage1.finetune=none", f"--runs={tmp_path}"]
    code, said = submit(cluster, "jobs/train.py", "--preset", "demo", *options)
    assert code == 0, said
    assert "succeeded" in said
    assert "CLIP-CD" in said
    metrics = json.loads((tmp_path / "tiny" / "metrics.json").read_text())
    assert list(metrics["variants"]) == ["zero_shot", "fine_tuned", "clip_cd"]
    assert (tmp_path / "mlflow.db").exists()
    assert (tmp_path / "tiny" / "bundle" / "manifest.json").exists()


@pytest.mark.slow
def test_a_sweep_succeeds_on_a_cluster(
    cluster: Cluster, tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    options = [
        *tiny_options(tiny_settings),
        "--stage1.finetune=none",
        "--samples=3",
        "--tune.seeds=2",
        f"--runs={tmp_path}",
    ]
    code, said = submit(cluster, "tune/sweep.py", "--preset", "demo", *options)
    assert code == 0, said
    assert "succeeded" in said
    trials = [
        json.loads(path.read_text())
        for path in sorted((tmp_path / "tiny-sweep" / "trials").iterdir())
    ]
    assert [trial["number"] for trial in trials] == [0, 1, 2]
    assert all(trial["error"] is None for trial in trials)
    assert (tmp_path / "tiny-sweep" / "best.yaml").exists()


@pytest.mark.slow
def test_a_run_on_a_store_is_stopped_in_stage_1_and_continued_and_leaves_nothing_on_the_disk(
    cluster: Cluster, s3: dict[str, str], tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    scratch, store = tmp_path / "scratch", S3FileSystem(use_listings_cache=False)
    scratch.mkdir()
    epochs, job = 8, ["jobs/train.py", "--preset=demo", *tiny_options(tiny_settings)]
    job += [
        f"--stage1.epochs={epochs}",
        "--runs=s3://raycd/runs",
        f"--tracking.uri=sqlite:///{tmp_path}/mlflow.db",
    ]
    variables = ["--runtime-env-json", json.dumps({"env_vars": {**s3, "TMPDIR": str(scratch)}})]

    code, said = submit(
        cluster, *job, options=[*variables, "--submission-id=on-a-store", "--no-wait"]
    )
    assert code == 0, said
    # Ray Train knows of a checkpoint by the time that it writes the next one.
    pattern = "raycd/runs/tiny/.train/stage1-*/*/history.json"
    checkpoints = wait_until(lambda: len(found := sorted(store.glob(pattern))) > 1 and found, 240)
    kept = json.loads(store.cat_file(checkpoints[0]))
    ask(cluster, "POST", "/api/jobs/on-a-store/stop")
    wait_until(lambda: ask(cluster, "GET", "/api/jobs/on-a-store")["status"] == "STOPPED", 60)

    code, said = submit(cluster, *job, options=variables)
    assert code == 0, said
    assert "zero_shot: done before" in said
    trained = json.loads(store.cat_file("raycd/runs/tiny/stage1/stage.json"))["history"]
    assert len(trained) == epochs
    assert trained[: len(kept)] == kept, "it began again"
    assert store.exists("raycd/runs/tiny/report.html")
    assert store.glob("raycd/runs/mlartifacts/*/artifacts/bundle/data/bundle/manifest.json")
    assert not store.exists("raycd/runs/tiny/.train/stage1*")
    local_copy("s3://raycd/runs/tiny/bundle", tmp_path / "bundle")
    assert bundle.load(tmp_path / "bundle").gallery["path"][0].as_py().startswith("s3://raycd/")

    left = [path.name for path in scratch.rglob("*")]
    # Of torch's compiler, which makes it empty as it is imported
    assert [name for name in left if not name.startswith("torchinductor_")] == []
    home = Path(cluster.environment["HOME"])
    assert not [
        name
        for name in ("ray_results", "mlruns", "runs", "report.html", "stage.json")
        if list(home.rglob(name))
    ]
    assert not [
        path for path in home.rglob("*") if path.suffix in (".safetensors", ".parquet", ".jpg")
    ]


@pytest.mark.slow
def test_a_users_mistake_fails_the_job_with_its_message(cluster: Cluster) -> None:
    code, said = submit(cluster, "jobs/train.py", "--preset", "demo", "--stage2.epoch", "3")
    assert code != 0
    assert re.search("did you mean .*--stage2.epochs", said)
    assert "Traceback" not in said


@pytest.mark.slow
def test_without_the_token_a_job_is_refused(cluster: Cluster) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{cluster.address}/api/jobs/", timeout=10)
    assert caught.value.code == 401
    code, said = submit(cluster, "jobs/train.py", "--preset", "demo", RAY_AUTH_MODE="disabled")
    assert code != 0
    assert "401" in said or "token" in said
