"""The jobs of k8s/ as they run there: a head without CPUs, and a worker that comes for them."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from s3fs import S3FileSystem

from tests.jobs.test_job_submit import wait_until
from tests.package.test_kubernetes import of_kind
from tests.processes import ROOT
from tests.runtime.finished import merged
from tests.two_nodes import two_nodes

WAITS_S = 15  # for the first worker, once a job wants it: it does not fail meanwhile
BEFORE_RAY = "catalogue"  # the last stage that the driver does by itself
QUICK = {  # two short trials
    "stage2": {"epochs": 4},
    "tune": {"seeds": 2, "finalists": 1, "final_seeds": 1, "concurrent": 1},
}


def is_there(bucket: S3FileSystem, path: str) -> bool:
    bucket.invalidate_cache()
    return bool(bucket.exists(path))


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_jobs_run_where_the_first_worker_comes_after_them(
    tiny_settings: dict[str, Any], s3: dict[str, str], tmp_path: Path
) -> None:
    tiny = tmp_path / "tiny.yaml"
    tiny.write_text(yaml.safe_dump(merged(tiny_settings, QUICK) | {"name": ""}))
    [settings] = of_kind("cpu", "ConfigMap")
    entrypoints = {
        job["metadata"]["name"]: shlex.split(job["spec"]["entrypoint"])
        for job in of_kind("cpu", "RayJob")
    }
    here = settings["data"] | s3 | {"RAYCD_TRACKING__URI": f"sqlite:///{tmp_path}/mlflow.db"}
    bucket = S3FileSystem()

    with two_nodes(here, cpus=(0, 2), late=True) as nodes:

        def run(name: str, *more: str) -> subprocess.Popen[str]:
            _, command, *rest = entrypoints[name]
            return subprocess.Popen(
                [sys.executable, "-m", "jobs.command", command, *rest, *more],
                cwd=ROOT,
                env=nodes.environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )

        job = run("raycd-train", "--config", str(tiny))
        drawn = f"raycd/runs/demo/{BEFORE_RAY}/stage.json"
        wait_until(lambda: job.poll() is not None or is_there(bucket, drawn), 240)
        time.sleep(WAITS_S)
        assert job.poll() is None, job.communicate()[0]
        assert not is_there(bucket, "raycd/runs/demo/zero_shot/stage.json")
        nodes.join()
        said = job.communicate(timeout=600)[0]
        assert job.returncode == 0, said
        assert "bundle:  s3://raycd/runs/demo/bundle" in said

        for picture in bucket.ls("raycd/runs/demo/catalogue/images")[:20]:
            bucket.copy(picture, f"raycd/photos/{picture.rpartition('/')[2]}")
        trials = ["--config", str(tiny), "--samples", "2"]  # the later one counts
        for name, more in (("raycd-embed", []), ("raycd-sweep", trials)):
            job = run(name, *more)
            said = job.communicate(timeout=600)[0]
            assert job.returncode == 0, said
    assert [one for one in bucket.find("raycd/features") if one.endswith(".parquet")]
    assert bucket.exists("raycd/runs/demo-sweep")
