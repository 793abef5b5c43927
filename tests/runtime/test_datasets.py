"""What people see of Ray Data: raycd's own progress, and nothing of Ray's."""

import logging
import time
from typing import Any

import pyarrow as pa
import pytest
import ray

from raycd.runtime import datasets

ADVISES = "ray.data._internal.issue_detection.issue_detector_manager"


def slowly(batch: dict[str, Any]) -> dict[str, Any]:
    time.sleep(0.5)
    return batch


def test_ray_gives_no_advice_on_the_memory_of_workers_that_nobody_can_follow(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = ray.data.DataContext.get_current().issue_detectors_config.high_memory_detector_config
    monkeypatch.setattr(often, "detection_time_interval_s", 0.01)
    said: list[str] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: said.append(record.getMessage()))
    monkeypatch.setattr(logging.getLogger(ADVISES), "handlers", [handler])
    blocks = datasets.blocks_of(pa.table({"key": list(range(6))}), 1)
    # So few CPUs that any memory counts as much
    found = datasets.results(blocks, (slowly, {"num_cpus": 0.001}))
    assert sum(len(part) for part in found) == 6
    assert said == []
