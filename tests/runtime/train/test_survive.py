"""Kills of all that a training consists of, on a cluster of several raylets."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

from raycd.train.checkpoint import WEIGHTS
from tests.runtime.train.nodes import Nodes, Training, cluster_of
from tests.runtime.train.surviving import SCHEDULE, STEPS, undisturbed
from tests.train.test_loop import untimed


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with cluster_of(2) as found:
        yield found


@pytest.fixture
def job(nodes: Nodes, tmp_path: Path) -> Training:
    return Training(tmp_path, nodes)


def check(found: dict[str, Any], *, exactly: bool = True, dropout: float = 0.5) -> None:
    """Compare a result with that of the same training undisturbed in one process."""
    expected, history = undisturbed(dropout)
    weights = load_file(Path(found["checkpoint"]) / WEIGHTS)
    assert found["best"] == 0
    for name, value in expected.items():
        if exactly:
            assert torch.equal(weights[name], value), name
        else:
            torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5)
    if exactly:
        assert untimed(found["history"]) == untimed(history)
    else:
        losses, wanted = ([entry["loss"] for entry in h] for h in (found["history"], history))
        assert losses == pytest.approx(wanted, rel=1e-4)


def curves(folder: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")


def check_record(folder: Path, failures: int) -> None:
    """Check that the stage has one MLflow run, with each epoch and each step once."""
    client = curves(folder)
    (child,) = client.search_runs(["1"], "tags.`raycd.stage` = 'toy'")
    epochs = [metric.step for metric in client.get_metric_history(child.info.run_id, "loss")]
    assert epochs == list(range(SCHEDULE.epochs))
    steps = [metric.step for metric in client.get_metric_history(child.info.run_id, "step/loss")]
    assert len(steps) > SCHEDULE.epochs
    assert sorted(set(steps)) == sorted(steps)
    assert steps[-1] > (SCHEDULE.epochs - 1) * STEPS
    assert sum(name.startswith("raycd.failure.") for name in child.data.tags) == failures


@pytest.mark.slow
def test_a_worker_that_is_killed_is_started_again_and_the_training_ends_bit_by_bit_the_same(
    job: Training,
) -> None:
    job.inputs["dies_at"] = [1, 30, str(job.folder / "died")]
    job.start()
    code, said = job.ended()
    assert code == 0, said
    found = job.result()
    check(found)
    (failure,) = found["failures"]
    assert failure["worker"] == 0
    assert "process" in failure["where"]
    assert "died" in failure["what"]
    assert failure["continued_from"].startswith("epoch 2, step ")
    assert "warning: toy: worker 0 (" in said
    assert f"toy: goes on from {failure['continued_from']}" in said


@pytest.mark.slow
def test_a_raylet_that_is_killed_costs_the_steps_since_the_last_checkpoint(
    nodes: Nodes, job: Training
) -> None:
    job.inputs["pace"] = 0.25  # a worker outlives its raylet by some seconds
    job.start()
    job.checkpoint_inside_of(1)
    nodes.kill(nodes.of(job.workers()[0]))
    code, said = job.ended()
    assert code == 0, said
    found = job.result()
    check(found)
    (failure,) = found["failures"]
    assert "died" in failure["what"]
    assert failure["continued_from"].startswith(("epoch 1, step ", "epoch 2"))
    assert failure["workers"] == 1
    check_record(job.folder, failures=1)


@pytest.mark.slow
def test_a_driver_that_is_killed_goes_on_by_the_same_command_from_the_newest_whole_checkpoint(
    job: Training,
) -> None:
    job.start()
    job.checkpoint_inside_of(2)
    client = curves(job.folder)

    def recorded() -> Any:
        return client.search_runs(["1"], "tags.`raycd.stage` = 'toy'")[0]

    job.wait_for(lambda: "loss" in recorded().data.metrics)  # written beside the training
    job.kill()
    child = recorded()
    assert child.info.status == "RUNNING"
    assert child.data.metrics["loss"] > 0, "a dead run has its curve"
    assert child.data.metrics["step/loss"] > 0
    worker = job.workers()[0]
    for _ in range(200):  # Ray ends the workers of a driver that is gone
        if not os.path.exists(f"/proc/{worker}"):
            break
        time.sleep(0.1)
    newest = max(job.store.glob("toy/epoch-*-step-*"))
    file = newest / WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])
    job.more["run"] = child.data.tags["mlflow.parentRunId"]
    job.start()
    code, said = job.ended()
    assert code == 0, said
    assert f"a checkpoint is damaged and not used: {newest.name} (SafetensorError" in said
    found = job.result()
    check(found)
    (failure,) = found["failures"]
    assert failure["what"] == "the job ended before the stage did"
    assert failure["continued_from"].startswith("epoch ")
    check_record(job.folder, failures=1)


@pytest.mark.slow
@pytest.mark.parametrize("early", [False, True])
def test_a_node_that_goes_with_notice_leaves_a_checkpoint_of_that_moment(
    nodes: Nodes, job: Training, early: bool
) -> None:
    # At its deadline that is no failure
    job.settings["train"] = {"checkpoint_minutes": 0.0, "max_failures": int(early)}
    job.inputs["pace"] = 0.35
    job.start(RAY_TRAIN_ENABLE_PREEMPTION_WATCHER="1")
    job.wait_for(lambda: job.workers())
    node = nodes.of(job.workers()[0])
    drain = ["drain-node", f"--address={nodes.cluster.address}", f"--node-id={node.node_id}"]
    drain += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot"]
    drain += ["--deadline-remaining-seconds=10"]
    subprocess.run([str(Path(sys.executable).parent / "ray"), *drain], check=True)
    job.checkpoint_inside_of(1)
    if not early:
        job.wait_for(lambda: job.went_on_with(1))
    nodes.terminate(node)
    code, said = job.ended()
    assert code == 0, said
    assert "a machine of the training will go: a checkpoint is kept" in said
    found = job.result()
    check(found)
    assert found["failures"][0]["continued_from"].startswith("epoch 1, step ")


@pytest.mark.slow
def test_a_full_disk_ends_the_training_with_one_message_and_it_goes_on_once_there_is_room(
    nodes: Nodes, tmp_path: Path
) -> None:
    store = tmp_path / "small"
    store.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", store]).returncode:
        pytest.skip("a file system of its own cannot be mounted here")
    try:
        job = Training(tmp_path, nodes, store=str(store))
        job.start()
        job.checkpoint_inside_of(2)
        with suppress(OSError), open(store / "filler", "wb", buffering=0) as filler:
            while filler.write(bytes(4096)):
                pass
        code, said = job.ended()
        assert code == 2, said
        assert "warning: toy: a checkpoint could not be written" in said, "one inside of an epoch"
        assert "error: a checkpoint could not be written" in said
        assert "No space left on device" in said
        assert "make room there, then run the same command again" in said
        assert "Traceback" not in said
        (store / "filler").unlink()
        job.start()
        code, said = job.ended()
        assert code == 0, said
        assert "toy: goes on from epoch 2" in said
        check(job.result())
        shutil.copytree(job.result()["checkpoint"], tmp_path / "kept")
    finally:
        subprocess.run(["umount", "-l", store], check=True)


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_an_elastic_training_goes_on_when_a_node_leaves_and_grows_when_one_joins(
    nodes: Nodes, tmp_path: Path
) -> None:
    job = Training(tmp_path, nodes, dropout=0.0, pace=0.3)
    job.settings["compute"] |= {"train_workers": {"min": 1, "max": 2}}
    job.more["resize_every"] = 3.0
    job.start()
    job.checkpoint_inside_of(1)
    assert sorted(job.workers()) == [0, 1]
    nodes.kill(nodes.of(job.workers()[1]))
    job.wait_for(lambda: job.went_on_with(1))
    nodes.add()
    job.wait_for(lambda: job.went_on_with(2))
    code, said = job.ended()
    assert code == 0, said
    found = job.result()
    check(found, exactly=False, dropout=0.0)
    assert [failure["workers"] for failure in found["failures"]] == [1, 2]
    assert found["failures"][1]["what"] == "the workers were 1, now 2"


@pytest.mark.slow
def test_a_fixed_number_of_workers_goes_on_with_the_machines_that_there_are(
    nodes: Nodes, tmp_path: Path
) -> None:
    job = Training(tmp_path, nodes, dropout=0.0, pace=0.1)
    job.settings["compute"] |= {"train_workers": 2}
    job.more["waits"] = 1
    job.start()
    job.checkpoint_inside_of(1)
    nodes.kill(nodes.of(job.workers()[1]))
    code, said = job.ended()
    assert code == 0, said
    assert "1 of 2 training workers: there is no room for more now" in said
    found = job.result()
    check(found, exactly=False, dropout=0.0)
    assert {failure["workers"] for failure in found["failures"]} == {1}
