"""How many replicas there may be: what is set, and what Ray Serve is told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from raycd.errors import ConfigError, RunError
from serve import app
from serve.args import ServeArgs
from serve.monitoring.metrics import Metrics
from serve.replica import Replica
from serve.start import running
from serve.start.local import check_room

RANGE = {"min": 1, "max": 3, "target": 4}


def told(args: ServeArgs) -> Any:
    """Return the configuration of the deployment that Ray Serve gets."""
    return running.application(args)._bound_deployment._deployment_config


def test_a_number_is_fixed_and_bounds_are_ray_serves_to_choose_between() -> None:
    fixed = told(ServeArgs(replicas=2))
    assert (fixed.num_replicas, fixed.autoscaling_config) == (2, None)
    scaled = told(ServeArgs(replicas=RANGE | {"up_s": 1, "down_s": 5})).autoscaling_config
    assert (scaled.min_replicas, scaled.max_replicas, scaled.initial_replicas) == (1, 3, None)
    assert scaled.target_ongoing_requests == 4
    assert (scaled.upscale_delay_s, scaled.downscale_delay_s) == (1, 5)
    same = told(ServeArgs(replicas={"min": 2, "max": 2}))
    assert (same.num_replicas, same.autoscaling_config) == (2, None)


def test_a_replica_that_ends_has_the_time_of_the_longest_request() -> None:
    assert told(ServeArgs(timeout_s=50)).graceful_shutdown_timeout_s > 50


def test_they_are_read_from_a_file_the_environment_and_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*argv: str) -> tuple[int, int, float]:
        config = app._read(argv).config
        args = app._arguments(config, Path("/bundle"))
        assert args.replicas == config.replicas
        return args.replicas.min, args.replicas.max, args.replicas.target

    file = tmp_path / "service.yaml"
    file.write_text("replicas: {min: 2, max: 6, target: 5}\n")
    assert read("--config", str(file)) == (2, 6, 5)
    monkeypatch.setenv("RAYCD_SERVE__REPLICAS", '{"max": 4}')
    assert read("--config", str(file)) == (1, 4, 8)
    assert read("--replicas", "3") == (3, 3, 8)
    monkeypatch.setenv("RAYCD_SERVE__REPLICAS", "2")
    assert read() == (2, 2, 8)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("0", "greater than or equal to 1"),
        ("true", "a number, or min, max and target"),
        ('{"min": 2}', "the most replicas that there may be"),
        ('{"min": 3, "max": 2}', "got min 3 and max 2"),
        ('{"max": 3, "target": 0}', "greater than 0"),
        ('{"maks": 3}', "'maks' is none"),
        ('{"max": 3, "target": 64}', "none would ever be added"),
    ],
)
def test_what_cannot_be_is_one_message(wrong: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        app._read(["--replicas", wrong])


def test_room_and_threads_are_reckoned_for_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    check_room(ServeArgs(replicas=RANGE, cpus=0.5), {"CPU": 2.0})
    with pytest.raises(RunError, match="too few CPUs") as caught:
        check_room(ServeArgs(replicas=RANGE), {"CPU": 2.0})
    assert "3 replicas of 1" in str(caught.value)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    replica = Replica(ServeArgs(gallery="none", replicas=RANGE), name="", observer=Metrics())
    assert replica._threads == 2  # (8 - 1) // 3


def test_a_file_of_milvus_lite_allows_no_second_replica() -> None:
    with pytest.raises(ValidationError, match="belongs to one process"):
        ServeArgs(gallery_engine="milvus:///data/x.db", replicas=RANGE)
