"""The MLflow record of a sweep, on a real database and on a server that goes away."""

from __future__ import annotations

import csv
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from raycd.config import Config, cli
from raycd.errors import TrackingError
from raycd.runtime.record.tracking import Tracker
from tune import outcome
from tune.finals import Finalist
from tune.journal import Journal, Record
from tune.record import SweepRecord
from tune.space import Space, make_space

METRIC = "recall@10"
RESULT: dict[str, Any] = {
    "seeds": 2,
    "queries": 60,
    "default_won": False,
    "better": True,
    "metrics": {
        METRIC: {"default": 0.3, "winner": 0.4, "difference": 0.1, "low": 0.05, "high": 0.15}
    },
}


def config(tmp_path: Path, **tracking: str) -> Config:
    return Config.model_validate({"name": "tiny", "runs": str(tmp_path), "tracking": tracking})


def finalists(trials: list[Record], winner: int) -> list[Finalist]:
    return [Finalist(trials[winner]["settings"], 0.4, winner), Finalist({}, 0.3, None)]


def space_of(config: Config) -> Space:
    out = ("mine.eps_low", "mine.eps_high", "mine.s_max", "stage2.dropout")
    return make_space(config, [f"{name}=none" for name in out])


def trial(number: int, status: str, *scores: float, error: str | None = None) -> Record:
    settings = {"mine.alpha": 0.5 + 0.01 * number, "stage2.k": 1 + number}
    kinds = ["original", "pseudo", "original"]
    epochs = [
        {
            "seen": 10 * (i + 1),
            "epoch": i,
            "kind": kinds[i],
            "loss": 2.0 - i,
            "lr": 0.1,
            "seconds": 0.5,
        }
        | {"selection": score, "score": score}
        for i, score in enumerate(scores)
    ]
    return {
        "number": number,
        "proposed": settings,
        "settings": settings,
        "status": status,
        "value": max(scores) if scores and error is None else None,
        "epochs": epochs,
        "started": 1000.0 + number,
        "seconds": 1.5,
        "error": error,
    }


def three() -> list[Record]:
    return [
        trial(0, "finished", 0.2, 0.25, 0.3),
        trial(1, "stopped", 0.1),
        trial(2, "failed", error="ConfigError: no such head"),
    ]


def children(client: MlflowClient, parent: str) -> list[Run]:
    found = client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{parent}'")
    return sorted(found, key=lambda run: str(run.info.run_name))


def test_a_sweep_is_a_run_with_a_child_for_each_trial(tmp_path: Path) -> None:
    settings = config(tmp_path)
    space, trials = space_of(settings), three()
    journal = Journal(str(tmp_path / "tiny-sweep"), str(tmp_path / "tiny"))
    with Tracker.open(
        settings, tmp_path, name="tiny-sweep", more={"space.mine.alpha": "0.4 to 0.7"}
    ) as tracker:
        record = SweepRecord(tracker, journal, METRIC)
        for one in trials:
            record.add(one)
            record.add(one)  # handed in already
        files = outcome.files(space, trials, finalists(trials, 0), RESULT, METRIC)
        outcome.write(journal, files, RESULT)
        record.catch_up(trials)
        record.finish(trials, RESULT, files)

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    parent = client.get_run(tracker.run_id)
    assert (parent.info.run_name, parent.info.status) == ("tiny-sweep", "FINISHED")
    assert parent.data.params["space.mine.alpha"] == "0.4 to 0.7"
    assert parent.data.params["stage2.epochs"] == "100"
    assert parent.data.metrics["best recall_at_10"] == 0.3
    assert parent.data.metrics["best_trial"] == 0
    assert parent.data.metrics["val/recall_at_10/low"] == 0.05
    assert parent.data.tags["raycd.better"] == "True"

    found = children(client, tracker.run_id)
    assert [run.info.run_name for run in found] == ["trial 000", "trial 001", "trial 002"]
    assert [run.info.status for run in found] == ["FINISHED", "FINISHED", "FAILED"]
    assert [run.data.tags["raycd.status"] for run in found] == ["finished", "stopped", "failed"]
    assert found[0].data.params == {"mine.alpha": "0.5", "stage2.k": "1"}
    assert found[2].data.tags["raycd.error"] == "ConfigError: no such head"
    assert (found[1].info.start_time, found[1].info.end_time) == (1_001_000, 1_002_500)
    histories = {
        name: [
            (point.step, point.value)
            for point in client.get_metric_history(found[0].info.run_id, name)
        ]
        for name in ("loss", "pseudo/loss", "recall_at_10", "best recall_at_10")
    }
    assert histories == {
        "loss": [(0, 2.0), (2, 0.0)],
        "pseudo/loss": [(1, 1.0)],
        "recall_at_10": [(0, 0.2), (1, 0.25), (2, 0.3)],
        "best recall_at_10": [(0, 0.3)],
    }
    assert [kept["mlflow"]["run"] for kept in journal.trials()] == [
        run.info.run_id for run in found
    ]

    names = {file.path for file in client.list_artifacts(tracker.run_id)}
    assert names == {"best.yaml", "trials.csv", "figures"}
    assert {file.path for file in client.list_artifacts(tracker.run_id, "figures")} == {
        "figures/history.png"
    }
    downloaded = client.download_artifacts(tracker.run_id, "", str(tmp_path))
    rows = list(csv.reader((Path(downloaded) / "trials.csv").read_text().splitlines()))
    assert rows == [
        ["number", "status", "value", "epochs", "seconds", "mine.alpha", "stage2.k", "error"],
        ["0", "finished", "0.3", "3", "1.5", "0.5", "1", ""],
        ["1", "stopped", "0.1", "1", "1.5", "0.51", "2", ""],
        ["2", "failed", "", "0", "1.5", "0.52", "3", "ConfigError: no such head"],
    ]
    best = str(tmp_path / "tiny-sweep" / "best.yaml")
    assert cli.parse(
        ["--config", best], prog="jobs/train.py", description=""
    ).config == space.configured(trials[0]["settings"])


def test_what_is_left_for_train_has_no_password(tmp_path: Path) -> None:
    settings = config(tmp_path)
    tracking = settings.tracking.model_copy(update={"uri": "https://ann:secret@mlflow.corp"})
    space = space_of(settings.model_copy(update={"tracking": tracking}))
    trials = three()
    best = outcome.files(space, trials, finalists(trials, 0), RESULT, METRIC)["best.yaml"].decode()
    assert "secret" not in best
    assert "# tracking.uri has a password and is not here" in best
    assert yaml.safe_load(best)["tracking"]["enabled"] == tracking.enabled


def test_figures_of_enough_trials(tmp_path: Path) -> None:
    space = space_of(config(tmp_path))
    trials = [trial(number, "finished", 0.1 * number, 0.1 * number) for number in range(5)]
    files = outcome.files(space, trials, finalists(trials, 4), RESULT, METRIC)
    assert list(files) == [
        "best.yaml",
        "history.png",
        "parallel_coordinates.png",
        "importances.png",
    ]
    assert all(data.startswith(b"\x89PNG") for name, data in files.items() if name.endswith(".png"))


def test_a_metric_of_a_category_stands_below_the_category(tmp_path: Path) -> None:
    metric = "tops / tees/recall@10"
    journal = Journal(str(tmp_path / "tiny-sweep"), str(tmp_path / "tiny"))
    with Tracker.open(config(tmp_path), tmp_path) as tracker:
        result = {**RESULT, "metrics": {metric: RESULT["metrics"]["recall@10"]}}
        SweepRecord(tracker, journal, metric).finish(three(), result, {})
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    names = {
        re.sub("-[0-9a-f]{8}", "-HASH", name)
        for name in client.get_run(tracker.run_id).data.metrics
    }
    assert names >= {"best tops _ tees-HASH/recall_at_10", "val/tops _ tees-HASH/recall_at_10/low"}


def test_what_thresholds_could_not_change_gives_no_importances_and_is_told(tmp_path: Path) -> None:
    space = space_of(config(tmp_path))
    untouched = [
        trial(number, "stopped", 0.1 * number) for number in range(5)
    ]  # none came to its pseudo epoch
    files = outcome.files(space, untouched, finalists(untouched, 4), RESULT, METRIC)
    assert list(files) == ["best.yaml", "history.png", "parallel_coordinates.png"]
    journal = Journal(str(tmp_path / "tiny-sweep"), str(tmp_path / "tiny"))
    text = outcome.summary(untouched, finalists(untouched, 4), RESULT, journal)
    assert "warning: 5 of 5 measured trials have trained no epoch of pseudo triplets" in text
    touched = [trial(number, "finished", 0.1 * number, 0.1 * number) for number in range(4)]
    assert "importances.png" in outcome.files(space, touched, finalists(touched, 3), RESULT, METRIC)
    assert "warning" not in outcome.summary(touched, finalists(touched, 3), RESULT, journal)


def test_trials_that_the_tables_cut_short_are_told(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path / "tiny-sweep"), str(tmp_path / "tiny"))
    trials = [trial(number, "finished", 0.1 * number, 0.1 * number) for number in range(4)]
    whole = [one | {"images_cut_short": 0} for one in trials]
    assert "warning" not in outcome.summary(whole, finalists(whole, 3), RESULT, journal)
    cut = [one | {"images_cut_short": 700 * one["number"]} for one in trials]
    text = outcome.summary(cut, finalists(cut, 3), RESULT, journal)
    assert "warning: in 3 measured trials up to 2,100 images have fewer than mine.s_max" in text


def test_a_sweep_without_a_record_keeps_its_trials(tmp_path: Path) -> None:
    settings = config(tmp_path).model_copy(
        update={"tracking": config(tmp_path).tracking.model_copy(update={"enabled": False})}
    )
    journal, trials = Journal(str(tmp_path / "tiny-sweep"), str(tmp_path / "tiny")), three()
    with Tracker.open(settings, tmp_path) as tracker:
        record = SweepRecord(tracker, journal, METRIC)
        for one in trials:
            record.add(one)
        record.catch_up(trials)
        record.finish(trials, RESULT, {})
    assert not (tmp_path / "mlflow.db").exists()
    assert [kept["number"] for kept in journal.trials()] == [0, 1, 2]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Callable[[], Any], Callable[[], None]]]:
    """Address of an MLflow server, what starts it and what kills it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    running: list[subprocess.Popen[bytes]] = []
    uri = f"http://127.0.0.1:{port}"

    def start() -> None:
        argv = [
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            "1",
        ]
        argv += ["--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}"]
        argv += ["--artifacts-destination", str(tmp_path / "served")]
        environment = os.environ | {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        with (tmp_path / "server.log").open("ab") as log:
            where: dict[str, Any] = {
                "cwd": tmp_path,
                "env": environment,
                "stdout": log,
                "stderr": log,
            }
            running.append(
                subprocess.Popen([sys.executable, *argv], start_new_session=True, **where)
            )
        until = time.monotonic() + 120
        while not answers(uri):
            assert running[-1].poll() is None, (tmp_path / "server.log").read_text()
            assert time.monotonic() < until, (tmp_path / "server.log").read_text()
            time.sleep(0.2)

    def kill() -> None:
        process = running.pop()
        os.killpg(process.pid, signal.SIGKILL)  # its own session: the server and its worker
        process.wait()
        assert not answers(uri)

    yield uri, start, kill
    while running:
        kill()


def answers(uri: str) -> bool:
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.slow
def test_a_server_that_goes_away_gets_what_it_lacks_when_it_is_back(
    server: tuple[str, Callable[[], Any], Callable[[], None]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uri, start, kill = server
    start()
    settings = config(tmp_path, uri=uri)
    journal, trials = Journal(str(tmp_path / "tiny-sweep"), str(tmp_path / "tiny")), three()
    for one in trials:
        journal.write(one)
    with Tracker.open(settings, tmp_path, name="tiny-sweep") as tracker:
        record = SweepRecord(tracker, journal, METRIC)
        record.add(trials[0])
        kill()
        capsys.readouterr()
        record.add(trials[1])
        record.add(trials[2])
        said = capsys.readouterr().err
        assert said.count("the trials go on and are kept in") == 1
        assert "start the same command again: it goes on" in said
        assert str(tmp_path / "tiny-sweep" / "trials") in said
        assert ["mlflow" in kept for kept in journal.trials()] == [True, False, False]
        record.catch_up(trials)
        said = capsys.readouterr().err
        assert "warning: MLflow lacks 2 of 3 trials" in said
        assert "start the same command again to hand them in" in said
        record.finish(trials, RESULT, {})
        assert "best.yaml and the figures are in" in capsys.readouterr().err

        start()
        record.catch_up(journal.trials())
        assert capsys.readouterr().err == ""
        record.finish(journal.trials(), RESULT, {})
    client = MlflowClient(tracking_uri=uri)
    found = children(client, tracker.run_id)
    assert [run.info.run_name for run in found] == ["trial 000", "trial 001", "trial 002"]
    assert [run.info.status for run in found] == ["FINISHED", "FINISHED", "FAILED"]
    assert [kept["mlflow"]["run"] for kept in journal.trials()] == [
        run.info.run_id for run in found
    ]
    assert client.get_run(tracker.run_id).info.status == "FINISHED"


def test_a_sweep_whose_end_mlflow_loses_is_told_how_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Tracker.open(config(tmp_path), tmp_path)

    def lost(*_: object, **__: object) -> None:
        raise ConnectionError("gone")

    monkeypatch.setattr(MlflowClient, "set_terminated", lost)
    with (
        pytest.raises(
            TrackingError, match="the end of the MLflow run could not be recorded"
        ) as caught,
        tracker,
    ):
        pass
    assert str(caught.value).endswith("start the same command again: it goes on")


def test_a_trial_that_was_half_handed_in_is_handed_in_anew(tmp_path: Path) -> None:
    settings = config(tmp_path)
    journal, trials = Journal(str(tmp_path / "tiny-sweep"), str(tmp_path / "tiny")), three()
    with Tracker.open(settings, tmp_path) as tracker:
        tracker.child(
            "trial 000", trials[0]["settings"], {"raycd.trial": "0"}
        )  # killed before it was closed
        SweepRecord(tracker, journal, METRIC).catch_up(trials)
    found = children(
        MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}"), tracker.run_id
    )
    assert [run.info.run_name for run in found] == ["trial 000", "trial 001", "trial 002"]
    assert [run.info.status for run in found] == ["FINISHED", "FINISHED", "FAILED"]
