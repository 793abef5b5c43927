"""The MLflow record of a training while it runs, and of one that is run again."""

from __future__ import annotations

import itertools
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from raycd.config import Config
from raycd.errors import TrackingError
from raycd.runtime.record.mlflow_run import MlflowRun
from raycd.runtime.record.tracking import Tracker
from raycd.runtime.train import live
from raycd.runtime.train.checkpoints import Checkpoints
from raycd.runtime.train.failures import Failures
from raycd.runtime.train.live import EventHandler


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of runs whose database is made once, for that takes seconds."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def client(runs: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{runs}/mlflow.db")


@pytest.fixture
def tracker(runs: Path) -> Iterator[Tracker]:
    with Tracker.open(Config(preset="demo"), runs) as found:
        yield found


def epoch(number: int, kind: str = "original") -> dict[str, Any]:
    entry = {"epoch": number, "kind": kind, "loss": 1 / (number + 1)}
    return {"kind": "epoch", "when": 0.0, "entry": entry}


def step(number: int) -> dict[str, Any]:
    return {"kind": "measured", "when": 0.0, "step": number, "values": {"loss": 0.5, "lr": 0.1}}


def began(start: str, workers: int) -> dict[str, Any]:
    return {"kind": "began", "when": 3.0, "start": start, "workers": workers}


def worker(rank: int, process: int) -> dict[str, Any]:
    return {"kind": "worker", "when": 1.0, "rank": rank, "where": "host-b", "process": process}


def failed(errors: dict[int, str]) -> dict[str, Any]:
    return {"kind": "failed", "when": 2.0, "errors": errors}


def steps_of(client: MlflowClient, run_id: str, name: str) -> list[int]:
    return [metric.step for metric in client.get_metric_history(run_id, name)]


def test_a_running_stage_is_seen_and_one_that_goes_on_has_each_epoch_and_step_once(
    tracker: Tracker, client: MlflowClient, tmp_path: Path
) -> None:
    failures = Failures("toy", Checkpoints(str(tmp_path)))
    first = tracker.stage("toy", "mark")
    EventHandler("toy", first, failures).take(
        [step(10), epoch(0), step(60), epoch(1, "pseudo"), step(110)]
    )
    assert client.get_run(first.run_id).info.status == "RUNNING"
    assert steps_of(client, first.run_id, "loss") == [0]
    second = tracker.stage("toy", "mark")  # the first one's process was killed
    assert second.run_id == first.run_id
    again = [step(80), epoch(1, "pseudo"), step(110), step(160), epoch(2)]
    EventHandler("toy", second, failures).take(again)
    with second:
        second.log_epochs([event["entry"] for event in (epoch(0), epoch(1, "pseudo"), epoch(2))])
    assert steps_of(client, first.run_id, "loss") == [0, 2]
    assert steps_of(client, first.run_id, "pseudo/loss") == [1]
    assert steps_of(client, first.run_id, "step/loss") == [10, 60, 110, 160]
    assert client.get_run(first.run_id).info.status == "FINISHED"
    assert tracker.stage("toy", "mark").run_id != first.run_id, "it is done again"
    assert tracker.stage("toy", "another").run_id != tracker.stage("toy", "mark").run_id


def test_a_record_that_is_away_does_not_stop_a_training_and_gets_what_it_misses(
    tracker: Tracker,
    client: MlflowClient,
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(live, "AGAIN_AFTER", 0.0)

    def rename(one: str, other: str) -> None:
        with closing(sqlite3.connect(runs / "mlflow.db")) as database:
            database.execute(f"ALTER TABLE {one} RENAME TO {other}")

    with tracker.stage("toy", "away") as run:
        followed = EventHandler("toy", run, Failures("toy", Checkpoints(str(tmp_path))))
        followed.take([epoch(0)])
        rename("metrics", "gone")
        followed.take([epoch(1), step(10)])
        followed.take([step(60)])
        rename("gone", "metrics")
        followed.take([])
    said = capsys.readouterr().err
    assert said.count("the training goes on, and what is missing follows") == 1
    assert steps_of(client, run.run_id, "loss") == [0, 1]
    assert steps_of(client, run.run_id, "step/loss") == [10, 60]


def test_what_a_busy_server_has_written_before_it_answered_too_late_is_not_written_again(
    tracker: Tracker, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "AGAIN_AFTER", 0.0)
    log_batch, calls = MlflowClient.log_batch, itertools.count()

    def late(*given: Any, **more: Any) -> None:
        log_batch(*given, **more)
        if next(calls) % 2 == 0:
            raise TimeoutError("read timed out after 5 s")

    with tracker.stage("toy", "late") as run:
        followed = EventHandler("toy", run, Failures("toy", Checkpoints(str(tmp_path))))
        monkeypatch.setattr(MlflowClient, "log_batch", late)
        followed.take([epoch(0), step(10)])
        followed.take([])  # the steps, in time
        followed.take([epoch(1, "pseudo"), step(60)])
        for _ in range(3):
            followed.take([])
        followed.take([step(110)])
        followed.take([step(160)])
        with suppress(TrackingError):
            run.log_epochs([epoch(2)["entry"]])
        run.log_epochs([epoch(2)["entry"]])
    assert next(calls) > 6
    assert steps_of(client, run.run_id, "loss") == [0, 2]
    assert steps_of(client, run.run_id, "pseudo/loss") == [1]
    assert steps_of(client, run.run_id, "step/loss") == [10, 60, 110, 160]


def test_workers_that_do_not_start_for_a_minute_are_told_to_be_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(live, "TELL_AFTER", 0.1)

    def after_a_while(*events: dict[str, Any]) -> int:
        followed.take(events)
        time.sleep(0.15)
        for _ in range(2):
            followed.take([])
        return capsys.readouterr().err.count("toy: waiting for room for 3 training workers\n")

    followed = EventHandler("toy", MlflowRun(None, ""), Failures("toy", Checkpoints(str(tmp_path))))
    followed.expect(3)
    followed.take([])
    assert "waiting" not in capsys.readouterr().err, "too soon"
    assert after_a_while() == 1
    assert after_a_while(worker(0, 7), began("epoch 1", 3)) == 0
    assert after_a_while(failed({1: "it died"})) == 1
    assert after_a_while(failed({1: "it died"}), worker(0, 8)) == 0


def test_a_record_that_comes_back_shortly_before_the_end_gets_what_it_misses(
    tracker: Tracker, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise ConnectionError("no route to the record")

    with tracker.stage("toy", "back") as run:
        followed = EventHandler("toy", run, Failures("toy", Checkpoints(str(tmp_path))))
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, "log_batch", away)
            followed.take([epoch(0), step(10), failed({0: "it died"})])
        followed.take([step(60)])  # too soon to be tried again
        assert steps_of(client, run.run_id, "step/loss") == []
        followed.finish()
    assert steps_of(client, run.run_id, "loss") == [0]
    assert steps_of(client, run.run_id, "step/loss") == [10, 60]
    assert "raycd.failure.1" in client.get_run(run.run_id).data.tags


def test_failures_are_told_and_kept_with_where_it_went_on(
    tracker: Tracker, client: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = Checkpoints(str(tmp_path))
    with tracker.stage("toy", "failing") as run:
        followed = EventHandler("toy", run, Failures("toy", checkpoints))
        died = failed({1: "it died"})
        followed.take([began("the beginning", 2), worker(1, 7), died, died])
        followed.take([began("epoch 3, step 40", 1), began("epoch 4", 2)])
    found = Failures("toy", checkpoints).entries
    assert found == [
        {
            "when": "1970-01-01T00:00:02+00:00",
            "what": "it died",
            "worker": 1,
            "where": "host-b, process 7",
            "continued_from": "epoch 3, step 40",
            "workers": 1,
        },
        {
            "when": "1970-01-01T00:00:03+00:00",
            "what": "the workers were 1, now 2",
            "worker": None,
            "where": None,
            "continued_from": "epoch 4",
            "workers": 2,
        },
    ]
    said = capsys.readouterr().err
    assert said.count("warning: toy: worker 1 (host-b, process 7) has failed: it died\n") == 1
    assert "toy: goes on from epoch 3, step 40, workers: 1\n" in said
    tags = client.get_run(run.run_id).data.tags
    assert tags["raycd.failure.1"].endswith("it died; went on from epoch 3, step 40, workers: 1")
    assert "raycd.failure.2" in tags


def test_a_worker_that_fails_again_before_the_training_goes_on_is_told_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = Failures("toy", Checkpoints(str(tmp_path)))
    died, broke = failed({0: "it died"}), failed({0: "it broke"})
    events = [worker(0, 7), died, died, worker(0, 8), died, broke, died]
    found = [failures.take(event) for event in events]
    assert found == [False, True, False, False, True, True, False]
    failures.take(began("epoch 1", 1))
    assert [(entry["what"], entry["where"]) for entry in failures.entries] == [
        ("it died", "host-b, process 7"),
        ("it died", "host-b, process 8"),
        ("it broke", "host-b, process 8"),
    ]
    assert all(entry["continued_from"] == "epoch 1" for entry in failures.entries)
    assert capsys.readouterr().err.count("has failed") == 3


def test_workers_that_are_started_again_without_an_error_are_told_by_their_number(
    tmp_path: Path,
) -> None:
    failures = Failures("toy", Checkpoints(str(tmp_path)))
    for workers in (2, 2, 1):
        failures.take(began("epoch 1", workers))
    assert [entry["what"] for entry in failures.entries] == [
        "the workers were started again",
        "the workers were 2, now 1",
    ]


def test_what_follows_a_training_does_not_wait_long_for_a_record(
    tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_batch, retries = MlflowClient.log_batch, []

    def noted(*given: Any, **more: Any) -> None:
        retries.append(os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"])
        log_batch(*given, **more)

    monkeypatch.setattr(MlflowClient, "log_batch", noted)
    with tracker.stage("toy", "limits") as run:
        followed = EventHandler("toy", run, Failures("toy", Checkpoints(str(tmp_path))))
        retries.clear()
        followed.take([failed({0: "it died"}), epoch(0), step(10)])
        assert retries
        assert set(retries) == {"0"}
