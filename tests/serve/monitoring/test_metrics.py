"""What Prometheus reads from Ray's own port, after a few requests."""

from __future__ import annotations

import subprocess
import time

import httpx
import pytest

from serve.monitoring import metrics as of_serve
from tests.serve.asking import stands

EXPECTED = (
    'ray_raycd_request_seconds_count{...gallery="default"...path="/v1/search"...status="200"',
    'ray_raycd_request_seconds_count{...path="/v1/search"...status="422"',
    'ray_raycd_request_seconds_count{...path="other"...status="404"',
    'ray_raycd_step_seconds_count{...step="wait"',
    'ray_raycd_step_seconds_count{...step="encode"',
    "ray_raycd_batch_queries_count{",
    "ray_raycd_queue_searches{",
    "ray_raycd_queue_limit_searches{",
    'ray_raycd_cache_lookups_total{...cache="text"...result="hit"',
    'ray_raycd_cache_lookups_total{...cache="text"...result="miss"',
    'ray_raycd_cache_lookups_total{...cache="thumbnail"...result="miss"',
    "ray_raycd_gallery_images{",
    "ray_raycd_gallery_version{",
    "ray_raycd_gallery_lag_seconds{",
    "ray_raycd_index_recall_ratio{",
    'ray_raycd_bundle_info{...encoder="raycd-demo"...index="flat"',
    # The names of before, for one release
    "ray_raycd_batch_size_count{",
    "ray_raycd_busy{",
)


@pytest.fixture(scope="module")
def exported(metrics_url: str) -> str:
    """Return all that is exported, once what is expected is there."""
    until, text = time.monotonic() + 60, ""
    while not all(stands(line, text) for line in EXPECTED):
        assert time.monotonic() < until, [line for line in EXPECTED if not stands(line, text)]
        time.sleep(0.5)
        text = httpx.get(metrics_url, timeout=10).text
    return text


def test_requests_batches_caches_and_the_gallery_are_exported(exported: str) -> None:
    assert "in-particular" not in exported  # paths are endless, routes are few
    assert "ray_raycd_gpu_memory_bytes{" not in exported  # the tests' replica has no GPU


def test_names_are_as_prometheus_asks(exported: str, promtool: str) -> None:
    lines = [line for line in exported.splitlines(keepends=True) if "ray_raycd_" in line]
    check = [promtool, "check", "metrics"]
    done = subprocess.run(check, input="".join(lines), capture_output=True, text=True)
    said = (done.stdout + done.stderr).splitlines()
    assert [line for line in said if "label names" not in line] == []  # Ray's own, as WorkerId
    former = [f"ray_{name}" for name in of_serve.FORMER.values()]
    names = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    units = ("_total", "_seconds", "_bytes", "_info", "_ratio", "_queries", "_searches", "_images")
    odd = {name for name in names if not name.endswith(units)}
    assert odd == {"ray_raycd_gallery_version", *former}


def test_a_replica_that_changes_its_bundle_takes_back_what_it_said_of_the_old_one(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics, said = of_serve.Metrics(), []
    monkeypatch.setattr(metrics._info, "set", lambda value, tags: said.append((value, tags)))
    old, new = {"bundle": "old"}, {"bundle": "new"}
    for served in (old, old, new, new):
        metrics._serves(served)
    assert said == [
        (value, tags | {"gallery": "default"})
        for value, tags in ((1, old), (1, old), (0, old), (1, new), (1, new))
    ]
