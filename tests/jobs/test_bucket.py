"""Everything in a bucket: data, pictures, run, checkpoints, bundle and MLflow's artifacts."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from s3fs import S3FileSystem

from raycd import bundle
from raycd.config import Config, SyntheticConfig, flatten
from raycd.data.demo.synthetic import write_demo_data
from raycd.run import local_copy
from tests.faulty_store import Fault, faulty_store
from tests.jobs.test_job_submit import wait_until
from tests.processes import start
from tests.runtime.finished import merged
from tests.two_nodes import Nodes, two_nodes

EPOCHS = 8


@pytest.fixture(scope="module")
def nodes(s3_store: dict[str, str]) -> Iterator[Nodes]:
    with two_nodes(s3_store) as both:
        yield both


@pytest.fixture
def data(s3: dict[str, str], tiny_settings: dict[str, Any], tmp_path: Path) -> str:
    """Put the demo's pictures and captions, in Fashion-IQ's layout, into the bucket."""
    drawn = SyntheticConfig.model_validate(tiny_settings["data"]["synthetic"])
    write_demo_data(tmp_path / "data", drawn)
    S3FileSystem().put(f"{tmp_path}/data/", f"raycd/{tmp_path.name}/data/", recursive=True)
    return f"s3://raycd/{tmp_path.name}/data"


def options(settings: dict[str, Any], **more: Any) -> list[str]:
    wanted = flatten(Config.model_validate(merged(settings, more)))
    default = flatten(Config())
    return [f"--{name}={wanted[name]}" for name in wanted if wanted[name] != default[name]]


def kill(job: subprocess.Popen[str]) -> str:
    os.killpg(job.pid, signal.SIGKILL)
    return "".join(job.communicate())


Train = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def train() -> Iterator[Train]:
    """Return what starts jobs/train.py; none outlives a test that fails."""
    jobs: list[subprocess.Popen[str]] = []

    def one(*argv: str, environment: dict[str, str]) -> subprocess.Popen[str]:
        jobs.append(start("jobs/train.py", *argv, environment=environment))
        return jobs[-1]

    yield one
    for job in jobs:
        if job.poll() is None:
            kill(job)


@pytest.mark.slow
@pytest.mark.timeout(1500)  # three jobs, and two nodes that start and end
@pytest.mark.parametrize("where", ["one process", "two nodes"])
def test_the_demo_in_a_bucket_is_killed_in_stage_1_and_continued_and_leaves_nothing_on_the_disk(
    where: str,
    train: Train,
    request: pytest.FixtureRequest,
    data: str,
    s3: dict[str, str],
    tiny_settings: dict[str, Any],
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = {**s3, "HOME": str(home), "TMPDIR": str(home)}
    if where == "two nodes":
        environment = request.getfixturevalue("nodes").environment
    runs, workers = f"raycd/{tmp_path.name}/runs", 2 if where == "two nodes" else 1
    job = options(
        tiny_settings,
        data={"format": "fashioniq", "root": data},
        runs=f"s3://{runs}",
        tracking={"uri": f"sqlite:///{tmp_path}/mlflow.db"},
        stage1={"epochs": EPOCHS},
        compute={"train_workers": workers, "embed_workers": workers, "mine_workers": workers},
    )
    store = S3FileSystem(use_listings_cache=False)

    first = train(*job, environment=environment)
    # Ray Train knows of a checkpoint by the time that it writes the next one.
    pattern = f"{runs}/tiny/.train/stage1-*/*/history.json"

    def checkpoints() -> list[str]:
        assert first.poll() is None, first.communicate()
        found = sorted(store.glob(pattern))
        return found if len(found) > 1 else []

    kept = json.loads(store.cat_file(wait_until(checkpoints, 300)[0]))
    killed = kill(first)
    assert "stage 1" in killed

    began = time.monotonic()
    second = train(*job, environment=environment)
    wait_until(lambda: store.glob(f"{runs}/tiny/.lease/00000002.json"), 180)
    assert time.monotonic() - began > 20, "it did not wait for the lease to expire"
    third = train(*job, environment=environment)
    _, err = third.communicate(timeout=200)
    assert third.returncode == 2, err
    assert "is in use" in err
    assert f"process {second.pid} on " in err
    _, err = second.communicate(timeout=500)
    assert second.returncode == 0, err
    assert f"is held: process {first.pid} on" in err
    assert "zero_shot: done before" in err

    trained = json.loads(store.cat_file(f"{runs}/tiny/stage1/stage.json"))["history"]
    assert len(trained) == EPOCHS
    assert trained[: len(kept)] == kept, "it began again"
    assert store.exists(f"{runs}/tiny/report.html")
    assert store.glob(f"{runs}/mlartifacts/*/artifacts/bundle/data/bundle/manifest.json")
    assert store.find(f"{runs}/tiny/.train") == []
    assert store.find(f"{runs}/tiny/.unfinished") == []
    local_copy(f"s3://{runs}/tiny/bundle", tmp_path / "bundle")
    paths = bundle.load(tmp_path / "bundle").gallery["path"].to_pylist()
    assert paths
    assert all(path.startswith(f"{data}/") for path in paths)

    root = home if where == "one process" else request.getfixturevalue("nodes").root
    left = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
    ray = re.compile(r"(raycd-(?!scratch)\w+/|ray/|ray\.log)")  # what a killed one has logged, too
    fonts = ".cache/matplotlib/"
    files = [str(path) for path in left if not ray.match(str(path)) and fonts not in str(path)]
    assert files == [], "\n".join(files)


@pytest.mark.slow
def test_a_job_whose_bucket_goes_in_stage_1_ends_with_one_message_and_goes_on_where_it_was(
    data: str, train: Train, s3: dict[str, str], tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    runs, store = f"raycd/{tmp_path.name}/runs", S3FileSystem(use_listings_cache=False)
    job = options(
        tiny_settings,
        data={"format": "fashioniq", "root": data},
        runs=f"s3://{runs}",
        tracking={"enabled": False},
        stage1={"epochs": EPOCHS},
    )
    with faulty_store(s3["AWS_ENDPOINT_URL"]) as proxy:
        through = {**s3, "AWS_ENDPOINT_URL": proxy.url, "AWS_MAX_ATTEMPTS": "1"}
        proxy.faults = [Fault("503 SlowDown", path=part, times=3) for part in ("data/", "runs/")]
        first = train(*job, environment=through)
        pattern = f"{runs}/tiny/.train/stage1-*/*/history.json"

        def checkpoints() -> list[str]:
            assert first.poll() is None, first.communicate()
            found = sorted(store.glob(pattern))
            return found if len(found) > 1 else []  # as above

        kept = json.loads(store.cat_file(wait_until(checkpoints, 300)[0]))
        proxy.faults = [Fault("gone", times=10**9)]
        _, err = first.communicate(timeout=400)
        assert first.returncode == 2, err
        message = err.partition("error: ")[2]
        assert "s3://raycd does not answer" in message
        assert "run the same command again" in message
        assert "Traceback" not in err
        proxy.faults = []
        second = train(*job, environment=through)
        _, err = second.communicate(timeout=500)
        assert second.returncode == 0, err
    assert "zero_shot: done before" in err
    trained = json.loads(store.cat_file(f"{runs}/tiny/stage1/stage.json"))["history"]
    assert trained[: len(kept)] == kept, "it began again"
