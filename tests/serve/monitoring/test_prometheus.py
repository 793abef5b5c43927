"""Debian's Prometheus reads the metrics of a running service, its alerts and its dashboard."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml

from serve.start.local import free_port

DOCS = Path(__file__).parents[3] / "docs"
NOT_HERE = {"ray_raycd_gpu_memory_bytes"}  # a replica without a GPU has none
PATIENCE_S = 90


@pytest.fixture(scope="module")
def reading(
    prometheus: str, metrics_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """Run a Prometheus that reads the service each second; yield a client of it."""
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
    target = {"targets": [urlsplit(metrics_url).netloc]}
    settings = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(DOCS / "alerts.yaml")],
        "scrape_configs": [{"job_name": "raycd", "static_configs": [target]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    where = [
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    log = (folder / "log").open("w")
    process = subprocess.Popen([prometheus, *where], stdout=log, stderr=log)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=30) as client:
        yield client
    process.terminate()
    process.wait(30)


def asked(reading: httpx.Client, path: str, **params: str) -> Any:
    """Return the data of an answer of Prometheus, which may just be starting."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            answer = reading.get(path, params=params)
            if answer.status_code != 503:
                break
        except httpx.ConnectError:
            pass
        assert time.monotonic() < until, "Prometheus does not start"
        time.sleep(0.2)
    body = answer.json()
    assert body["status"] == "success", body
    return body["data"]


def expressions() -> list[str]:
    """Return what the alerts and the dashboard ask."""
    [group] = yaml.safe_load((DOCS / "alerts.yaml").read_text())["groups"]
    panels = json.loads((DOCS / "grafana.json").read_text())["panels"]
    shown = [target["expr"] for panel in panels for target in panel["targets"]]
    asks = [rule["expr"] for rule in group["rules"]]
    return [*asks, *(each.replace("$__rate_interval", "1m") for each in shown)]


@pytest.mark.slow
def test_every_metric_that_alerts_and_dashboard_name_is_read(reading: httpx.Client) -> None:
    named = {name for each in expressions() for name in re.findall(r"\bray_\w+", each)} - NOT_HERE
    until, there = time.monotonic() + PATIENCE_S, set[str]()
    while not named <= there:
        assert time.monotonic() < until, sorted(named - there)
        there = set(asked(reading, "/label/__name__/values"))
    for each in expressions():
        asked(reading, "/query", query=each)
    # Ray forgets a gauge for a moment that a busy machine reports late
    served = "count(max_over_time(ray_raycd_bundle_info[5m]) == 1)"
    while not asked(reading, "/query", query=served)["result"]:
        assert time.monotonic() < until


@pytest.mark.slow
def test_no_alert_is_wrong_or_fires_for_a_service_that_answers(reading: httpx.Client) -> None:
    until = time.monotonic() + PATIENCE_S
    while True:
        [group] = asked(reading, "/rules")["groups"]
        rules = {rule["name"]: (rule["health"], rule["state"]) for rule in group["rules"]}
        if set(rules.values()) == {("ok", "inactive")}:
            return
        assert time.monotonic() < until, rules
        time.sleep(0.5)
