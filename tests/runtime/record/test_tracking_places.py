"""Where the record lies: in the folder of runs, whatever its name, or on a store."""

import os
import shlex
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from s3fs import S3FileSystem

from raycd.errors import ConfigError, TrackingError
from raycd.runtime.record import tracking
from raycd.runtime.record.tracking import Tracker
from tests.runtime.record.test_tracking import config


@pytest.mark.parametrize("name", ["100%25 a%20b", "what?", "no#1", "ü &=+", "x%3Fy;$(z)"])
def test_everything_of_the_record_lies_in_the_runs_folder_whatever_its_name(
    name: str, tmp_path: Path
) -> None:
    runs = tmp_path / name
    (tmp_path / "file").touch()
    settings = config().model_copy(update={"runs": str(runs)})
    with Tracker.open(settings, settings.runs) as tracker:
        tracker.log_artifact(tmp_path / "file")
    assert sorted(os.listdir(tmp_path)) == sorted([name, "file"])
    assert sorted(os.listdir(runs)) == ["mlartifacts", "mlflow.db"]
    *_, uri = shlex.split(tracking.how_to_see(settings))
    assert MlflowClient(tracking_uri=uri).get_run(tracker.run_id).info.status == "FINISHED"
    assert [
        item.path for item in MlflowClient(tracking_uri=uri).list_artifacts(tracker.run_id)
    ] == ["file"]


def test_the_command_that_shows_the_record_is_short_and_survives_a_shell(
    monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    command = "mlflow ui --backend-store-uri "
    assert tracking.how_to_see(config()) == f"{command}sqlite:///runs/mlflow.db"
    for runs in ("my runs", f"file://{tmp_path}/my runs"):
        shown = tracking.how_to_see(config().model_copy(update={"runs": runs}))
        assert shown == f"{command}'sqlite:///my runs/mlflow.db'"


def test_a_server_is_its_own_page() -> None:
    settings = config()
    tracked = settings.tracking.model_copy(update={"uri": "http://ann:secret@10.0.0.6:5000"})
    shown = tracking.how_to_see(settings.model_copy(update={"tracking": tracked}))
    assert shown == "open http://ann:***@10.0.0.6:5000"


def test_a_database_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database " * 100)
    with pytest.raises(TrackingError, match="cannot be written"):
        Tracker.open(config(), tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(TrackingError, match="cannot be written"):
        Tracker.open(config(uri=f"sqlite:///{tmp_path / 'file' / 'mlflow.db'}"), tmp_path)


def test_remote_runs_need_a_tracking_uri() -> None:
    with pytest.raises(ConfigError, match=r"--tracking\.uri"):
        Tracker.open(config(), "s3://bucket/runs")


def test_the_record_of_a_run_on_a_store_has_its_artifacts_there(
    s3: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "report.html").write_text("<p>")
    settings = config(uri=f"sqlite:///{tmp_path}/mlflow.db")
    with Tracker.open(settings, "s3://raycd/recorded") as tracker:
        tracker.log_artifact(tmp_path / "report.html")
    assert (
        S3FileSystem().cat(f"raycd/recorded/mlartifacts/{tracker.run_id}/artifacts/report.html")
        == b"<p>"
    )


def test_a_store_of_artifacts_that_refuses_is_told_before_anything_is_done(
    s3: dict[str, str], tmp_path: Path
) -> None:
    settings = config(uri=f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(
        TrackingError, match=r"cannot be kept in s3://no-such-bucket/runs/mlartifacts"
    ):
        Tracker.open(settings, "s3://no-such-bucket/runs")
