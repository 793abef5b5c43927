import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

from raycd import progress
from raycd.config import Config, flatten
from raycd.errors import TrackingError
from raycd.runtime.record import mlflow_run, tracking
from raycd.runtime.record.tracking import Tracker
from tests import refused

METRICS = {
    "preset": "demo",
    "variants": {
        "clip_cd": {"dress": {"recall@10": 0.5}, "average": {"recall@10": 0.25, "recall@50": 0.75}}
    },
    "counts": {"queries": {"dress": 500}, "missing_images": 0},
    "seconds": {"stage1": 12.5},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of runs whose database is made once, for that takes seconds; with a space."""
    return tmp_path_factory.mktemp("runs of a user")


@pytest.fixture
def client(runs: Path) -> MlflowClient:
    return client_of(runs)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    (folder / "encoder").mkdir(parents=True)
    (folder / "manifest.json").write_text('{"raycd": 1}')
    (folder / "encoder" / "weights.safetensors").write_bytes(b"weights")
    return folder


def client_of(runs: Path) -> MlflowClient:
    uri = f"sqlite:///{runs / 'mlflow.db'}"
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def config(**tracking: object) -> Config:
    return Config.model_validate({"preset": "demo", "tracking": tracking})


def test_a_pipeline_is_a_run_with_its_settings_and_a_stage_is_its_child(
    runs: Path, client: MlflowClient
) -> None:
    with Tracker.open(config(), runs) as tracker, tracker.stage("stage1") as stage:
        assert client.get_run(tracker.run_id).info.status == "RUNNING"
    parent, child = client.get_run(tracker.run_id), client.get_run(stage.run_id)
    assert parent.data.params == {name: str(value) for name, value in flatten(config()).items()}
    assert parent.info.run_name == "demo"
    assert parent.data.tags["raycd.preset"] == "demo"
    assert parent.data.tags["raycd.protocol"] == "original"
    assert child.data.tags["mlflow.parentRunId"] == tracker.run_id
    assert child.info.run_name == "stage1"
    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")


def test_the_commit_is_that_of_the_checkout_and_not_of_a_repository_around_a_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*what: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = ["git", "-C", str(tmp_path), *who, *what]
        return subprocess.run(done, check=True, capture_output=True, text=True).stdout.strip()

    def tags() -> dict[str, str]:
        tracking._commit.cache_clear()
        return dict(tracking._commit())

    own = tmp_path / "raycd/runtime/record/tracking.py"
    own.parent.mkdir(parents=True)
    own.write_text("1")
    monkeypatch.setattr(tracking, "__file__", str(own))
    assert tags() == {}
    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message", "around it")
    assert tags() == {}
    git("add", ".")
    git("commit", "--quiet", "--message", "of it")
    commit = {"mlflow.source.git.commit": git("rev-parse", "HEAD")}
    assert tags() == commit
    own.write_text("2")
    assert tags() == commit | {"raycd.uncommitted": "true"}
    tracking._commit.cache_clear()


def test_epochs_become_steps_and_pseudo_epochs_have_names_of_their_own(
    runs: Path, client: MlflowClient
) -> None:
    with Tracker.open(config(), runs) as tracker, tracker.stage("stage2") as stage:
        stage.log_epochs(
            [
                {"epoch": 1, "loss": 0.5, "kind": "original", "recall@10": 0.4},
                {"epoch": 2, "loss": 0.7, "kind": "pseudo", "recall@10": None},
                {"epoch": 3, "loss": 0.25, "kind": "original", "recall@10": 0.6},
            ]
        )

    def history(name: str) -> list[tuple[int, float]]:
        return [
            (metric.step, metric.value) for metric in client.get_metric_history(stage.run_id, name)
        ]

    assert history("loss") == [(1, 0.5), (3, 0.25)]
    assert history("recall_at_10") == [(1, 0.4), (3, 0.6)]
    assert history("pseudo/loss") == [(2, 0.7)]
    assert set(client.get_run(stage.run_id).data.metrics) == {"loss", "recall_at_10", "pseudo/loss"}


def test_more_metrics_than_one_request_takes_are_logged(runs: Path, client: MlflowClient) -> None:
    with Tracker.open(config(), runs) as tracker:
        tracker.log_epochs({"epoch": epoch, "loss": 1 / epoch} for epoch in range(1, 1502))
    assert client.get_run(tracker.run_id).data.metrics == {"loss": 1 / 1501}


def test_the_parent_holds_the_recall_of_every_variant(runs: Path, client: MlflowClient) -> None:
    with Tracker.open(config(), runs) as tracker:
        tracker.log_results(METRICS)
    assert client.get_run(tracker.run_id).data.metrics == {
        "clip_cd/dress/recall_at_10": 0.5,
        "clip_cd/average/recall_at_10": 0.25,
        "clip_cd/average/recall_at_50": 0.75,
        "counts/queries/dress": 500,
        "counts/missing_images": 0,
        "seconds/stage1": 12.5,
    }


ODD_NAMES = [
    *(
        "dress",
        "women's tops & more (2)",
        "women's tops + more [2]",
        "",
        ".",
        "..",
        "👗",
        "a/b",
        "a_b",
        "/a",
        "a ",
        "a.",
        "é",
    ),
    *("recall@10", "recall_at_10", "x" * 300, "x" * 299 + "y", "women_s tops _ more _2_"),
]


def test_no_two_categories_become_one_metric_and_none_is_refused(
    runs: Path, client: MlflowClient
) -> None:
    values = {name: {"recall@10": float(number)} for number, name in enumerate(ODD_NAMES)}
    values[mlflow_run._metric_name(ODD_NAMES[1])] = {"recall@10": -1.0}  # what another has become
    with Tracker.open(config(), runs) as tracker:
        tracker.log_metrics({"fine_tuned": values})
    found = client.get_run(tracker.run_id).data.metrics
    assert sorted(found.values()) == [-1.0, *map(float, range(len(ODD_NAMES)))]
    assert found["fine_tuned/dress/recall_at_10"] == 0
    assert found["fine_tuned/é/recall_at_10"] == ODD_NAMES.index("é")
    assert re.fullmatch(
        "women_s tops _ more _2_-[0-9a-f]{8}", mlflow_run._metric_name(ODD_NAMES[1])
    )


def test_files_become_artifacts_beside_the_database(
    runs: Path, client: MlflowClient, tmp_path: Path
) -> None:
    (tmp_path / "report.html").write_text("<p>")
    with Tracker.open(config(), runs) as tracker:
        tracker.log_artifact(tmp_path / "report.html")
    assert [item.path for item in client.list_artifacts(tracker.run_id)] == ["report.html"]
    assert list((runs / "mlartifacts").rglob("report.html"))


def test_the_bundle_is_a_model_version_that_can_be_fetched(
    runs: Path, client: MlflowClient, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Tracker.open(config(model="fetched"), runs) as tracker:
        assert tracker.register(bundle, "hash-1") == "1"
        assert tracker.register(bundle, "hash-1") == "1"
    with Tracker.open(config(model="fetched"), runs, run_id=tracker.run_id) as tracker:
        (bundle / "manifest.json").write_text('{"raycd": 2}')
        assert tracker.register(bundle, "hash-2") == "2"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{runs / 'mlflow.db'}")
    for version, manifest in (("1", '{"raycd": 1}'), ("2", '{"raycd": 2}')):
        got = Path(
            download_artifacts(f"models:/fetched/{version}", dst_path=str(tmp_path / version))
        )
        got /= "data/bundle"
        assert (got / "manifest.json").read_text() == manifest
        assert (got / "encoder" / "weights.safetensors").read_bytes() == b"weights"
    assert client.get_model_version("fetched", "1").run_id == tracker.run_id


def test_a_continued_pipeline_goes_on_with_its_run(runs: Path, client: MlflowClient) -> None:
    with pytest.raises(KeyboardInterrupt), Tracker.open(config(), runs) as first:
        raise KeyboardInterrupt
    assert client.get_run(first.run_id).info.status == "KILLED"
    with Tracker.open(config(), runs, run_id=first.run_id) as second:
        assert client.get_run(first.run_id).info.status == "RUNNING"
    assert second.run_id == first.run_id
    assert client.get_run(first.run_id).info.status == "FINISHED"


def test_other_settings_start_a_run_of_their_own(runs: Path, client: MlflowClient) -> None:
    with Tracker.open(config(), runs) as first:
        pass
    changed = Config.model_validate({"preset": "demo", "mine": {"alpha": 0.7}})
    with Tracker.open(changed, runs, run_id=first.run_id) as second:
        pass
    assert second.run_id != first.run_id
    assert client.get_run(second.run_id).data.tags["raycd.after"] == first.run_id
    assert client.get_run(second.run_id).data.params["mine.alpha"] == "0.7"


def test_a_run_that_is_gone_from_the_record_starts_anew(runs: Path, client: MlflowClient) -> None:
    with Tracker.open(config(), runs, run_id="0" * 32) as tracker:
        assert tracker.run_id != "0" * 32


def test_an_exception_leaves_both_runs_failed(runs: Path, client: MlflowClient) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        Tracker.open(config(), runs) as tracker,
        tracker.stage("mine") as stage,
    ):
        raise ZeroDivisionError
    assert client.get_run(tracker.run_id).info.status == "FAILED"
    assert client.get_run(stage.run_id).info.status == "FAILED"


def test_a_deleted_experiment_is_refused_with_the_remedy(runs: Path, client: MlflowClient) -> None:
    with Tracker.open(config(experiment="old"), runs):
        pass
    old = client.get_experiment_by_name("old")
    assert old is not None
    client.delete_experiment(old.experiment_id)
    with pytest.raises(TrackingError, match=r"--tracking\.experiment"):
        Tracker.open(config(experiment="old"), runs)


def test_a_server_that_does_not_run_is_told_in_seconds(runs: Path) -> None:
    before = time.monotonic()
    with refused.port() as port, pytest.raises(TrackingError) as caught:
        Tracker.open(config(uri=f"http://ann:secret@127.0.0.1:{port}"), runs)
    assert time.monotonic() - before < 10
    message = str(caught.value)
    assert "cannot be reached" in message
    assert "--tracking.enabled false" in message
    assert "secret" not in message
    assert not any(name.startswith("MLFLOW_HTTP_REQUEST") for name in os.environ)


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_told_in_seconds(runs: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        before = time.monotonic()
        with pytest.raises(TrackingError, match="cannot be reached"):
            Tracker.open(config(uri=f"http://127.0.0.1:{silent.getsockname()[1]}"), runs)
    assert time.monotonic() - before < 10


@pytest.mark.parametrize(
    "uri", ["http://", "http://[::1", "http://host:port", "sqlite://", "sqlite://mlflow.db"]
)
def test_a_malformed_uri_is_refused(uri: str, runs: Path) -> None:
    with pytest.raises(TrackingError, match=r"tracking.uri is malformed"):
        Tracker.open(config(uri=uri), runs)


@pytest.mark.parametrize("uri", ["htp://host", "mlruns"])
def test_a_store_that_mlflow_does_not_have_is_refused(uri: str, runs: Path) -> None:
    with pytest.raises(TrackingError, match=r"cannot be reached"):
        Tracker.open(config(uri=uri), runs)


def test_a_name_that_is_no_models_is_told_before_anything_is_done(runs: Path) -> None:
    with pytest.raises(TrackingError, match=r"model a/b:c cannot be used"):
        Tracker.open(config(model="a/b:c"), runs)


def test_a_record_that_is_lost_does_not_hide_the_first_error(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = Tracker.open(config(), runs)

    def lost(*_: object, **__: object) -> None:
        raise ConnectionError("gone")

    monkeypatch.setattr(MlflowClient, "set_terminated", lost)
    with pytest.raises(ZeroDivisionError), tracker:
        raise ZeroDivisionError
    assert "could not be recorded" in capsys.readouterr().err
    with pytest.raises(TrackingError, match="ConnectionError: gone") as caught, tracker:
        pass
    assert str(caught.value).endswith("then start the same command again: it goes on")


def test_without_tracking_nothing_is_recorded_and_mlflow_stays_out(tmp_path: Path) -> None:
    program = f"""
import sys
from raycd.config import Config
from raycd.runtime.record.tracking import Tracker
config = Config.model_validate({{"tracking": {{"enabled": False}}}})
with Tracker.open(config, {str(tmp_path)!r}) as tracker, tracker.stage("mine") as stage:
    stage.log_epochs([{{"epoch": 1, "loss": 1.0}}])
    stage.set_tags({{"a": 1}})
    tracker.log_results({METRICS!r})
    tracker.log_artifact("absent")
    assert tracker.register("absent") is None and tracker.run_id == ""
assert "mlflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fresh")


@pytest.mark.slow
def test_two_processes_may_make_the_database_at_once_and_say_nothing(fresh: Path) -> None:
    program = f"""
from raycd.config import Config
from raycd.runtime.record.tracking import Tracker
with Tracker.open(Config(), {str(fresh)!r}) as tracker:
    pass
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    ends = [(*process.communicate(timeout=120), process.returncode) for process in processes]
    assert ends == [("", "", 0), ("", "", 0)]
    experiment = client_of(fresh).get_experiment_by_name("raycd")
    assert experiment is not None
    assert len(client_of(fresh).search_runs([experiment.experiment_id])) == 2


def test_progress_is_the_only_voice(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Tracker.open(config(), runs):
        progress.say("working")
    assert capfd.readouterr().err == "working\n"
