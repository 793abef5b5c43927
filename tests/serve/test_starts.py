"""A start that fails: the command ends with it, a cluster tries it again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray import serve as ray_serve

from serve import app
from serve.args import ServeArgs
from serve.start import running
from tests.serve.asking import ask, png


def tries(application: Any) -> int:
    """Return after how many failed starts Ray Serve gives up, beside its bound for each replica."""
    count: int = application._bound_deployment._deployment_config.max_constructor_retry_count
    return count


def test_a_failed_start_ends_the_command_and_is_tried_again_on_a_cluster() -> None:
    args = ServeArgs(bundle="/bundle", gallery="none")
    assert (tries(running.application(args)), tries(app.build(args))) == (1, running.NO_END)


@pytest.mark.slow
def test_a_service_on_a_cluster_starts_once_what_it_needs_is_there(
    start_service: Callable[..., str], service_args: ServeArgs, tiny_bundle: Any, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    args = service_args.model_copy(update={"bundle": str(bundle)})
    with ThreadPoolExecutor(1) as thread:
        started = thread.submit(start_service, args, "late")
        told = ""
        while "Retrying" not in told:
            assert not started.done(), started.exception()
            time.sleep(0.1)
            if found := ray_serve.status().applications.get("late"):
                told = "".join(one.message for one in found.deployments.values())
        assert "name the bundle/ folder of a run that has finished" in told
        shutil.copytree(tiny_bundle.folder, tmp_path / "whole")
        (tmp_path / "whole").rename(bundle)
        url = started.result(120)
    try:
        with httpx.Client(base_url=url, timeout=60) as client:
            assert ask(client, png(tiny_bundle.images[0]), text="is blue").status_code == 200
    finally:
        ray_serve.delete("late")
