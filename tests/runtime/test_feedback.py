"""From searches and clicks to a better search, over a finished run."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from jobs import feedback, refresh
from jobs.benchmarks import feedback as simulated
from raycd import bundle
from raycd.client import Client
from raycd.config import Config
from raycd.data import manifest as reader
from raycd.data.build import DatasetBuilder, TripletRow
from raycd.errors import DataError
from raycd.feedback import manifest
from raycd.feedback.manifest import GALLERY_FILE, TRIPLETS_FILE
from raycd.gallery_db import GalleryDatabase
from raycd.runtime.record.tracking import Tracker
from raycd.runtime.stages import reading
from tests.runtime.clicked import filled
from tests.runtime.finished import UNTRACKED, Finished, merged
from tests.serve.crash.process import Service

STEPS = ("catalogue", "feedback", "judge", "alias", "swap")


def served(client: Client) -> str:
    found = client.info().bundle
    assert found is not None
    return found.digest


def settings_file(finished: Finished, folder: Path, **changes: Any) -> str:
    path = folder / "my.yaml"
    path.write_text(yaml.safe_dump(merged(finished.settings, changes)))
    return str(path)


def test_what_people_clicked_becomes_a_manifest_with_its_provenance(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = filled(finished.folder / "bundle", tmp_path / "g.sqlite", 60, support=2)
    out = tmp_path / "out"
    argv = ["--config", settings_file(finished, tmp_path), "--gallery", str(tmp_path / "g.sqlite")]
    assert feedback.program([*argv, "--out", str(out), "--held-back", "0.3"]) == 0
    train = reader.read(str(out), TRIPLETS_FILE, GALLERY_FILE)
    held = reader.read(str(out / feedback.HELD_BACK), TRIPLETS_FILE, GALLERY_FILE)
    rows = [r for r in train.triplets.to_pylist() if r["triplet_id"].startswith("feedback/")]
    provenance = json.loads((out / feedback.PROVENANCE).read_text())
    assert (provenance["searches"], provenance["liked"]) == (len(made), len(made))
    assert (provenance["triplets"], provenance["held_back"]) == (len(rows), len(held.triplets))
    assert len(rows) + len(held.triplets) + sum(provenance["left_out"].values()) == 60
    assert provenance["propensity"]["method"] == "model"
    assert min(len(rows), len(held.triplets)) > 5
    clicked = {(one.reference, one.text): one for one in made}
    for row in rows:
        one = clicked[row["reference"], row["captions"][0]]
        assert (row["target"], row["negatives"]) == (one.results[2], [*one.results[1::-1]])
    own = reader.read(str(out), TRIPLETS_FILE, GALLERY_FILE).triplets_of("val")
    assert len(own) == sum(finished.metrics()["counts"]["queries"].values())
    assert f"{len(rows):,} to train on" in capsys.readouterr().out


def test_feedback_that_makes_nothing_and_options_that_mean_nothing_are_told(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "g.sqlite", tmp_path / "out"
    argv = ["--config", settings_file(finished, tmp_path), "--out", str(out)]
    filled(finished.folder / "bundle", file, 3)
    for more, about in (
        (["--gallery", str(file)], "--support"),
        (["--gallery", str(file), "--since", "2100-01-01"], "no feedback"),
        (["--gallery", str(file), "--since", "soon"], "not a date"),
        (["--gallery", str(file), "--negatives", "-1"], "--negatives: impossible value"),
        (["--gallery", str(file), "--support", "0"], "--support: impossible value"),
        (["--gallery", str(file), "--held-back", "1"], "--held-back: impossible value"),
        (["--gallery", str(file), "--held-back", "nan"], "--held-back: impossible value"),
        (["--gallery", str(file), "--out", str(tmp_path)], "holds other things"),
        ([], "--gallery and --out"),
    ):
        assert feedback.program([*argv, *more]) == 2
        assert about in capsys.readouterr().err
    assert not out.exists()
    assert file.exists()


@pytest.mark.slow
def test_a_simulated_shop_trains_on_the_clicks_of_each_cycle_however_they_are_corrected(
    copied: Finished,
) -> None:
    config = copied.config(stage2={"epochs": 3, "lr": 1e-3}, **UNTRACKED)
    found = simulated.measure(config, argparse.Namespace(sessions=120))
    for way in simulated.WAYS:
        recalls = [float(found[f"{way}, cycle {n}: recall@10"]) for n in (1, 2, 3)]
        assert all(0 < recall <= 1 for recall in recalls)
        made = [int(found[f"{way}, cycle {n}: triplets"]) for n in (1, 2, 3)]
        assert made == sorted(made)
        assert (made[0] > 0) == (way != "without feedback")
    assert str(found["slice: estimated"]).startswith("1.00 ")
    assert found["looked at"] == "1.00 0.50 0.33 0.25 0.20 0.17 0.14 0.12 0.11 0.10"


@pytest.mark.slow
def test_a_refresh_moves_alias_and_service_to_what_is_better_and_does_nothing_twice(
    copied: Finished,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    old = copied.folder / "bundle"
    with Tracker.open(copied.config(), tmp_path) as tracker:
        before = tracker.register(old, "old")
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.set_registered_model_alias("raycd", "champion", str(before))
    filled(old, tmp_path / "g.sqlite", 400)
    config = settings_file(copied, tmp_path, stage2={"epochs": 40, "lr": 2e-3})
    argv = ["--config", config, "--into", "week", "--champion", "models:/raycd@champion"]
    argv += ["--gallery", str(tmp_path / "g.sqlite"), "--support", "1", "--held-back", "0.3"]
    row = bundle.read_gallery(old).to_pylist()[0]
    (tmp_path / "new.csv").write_text(
        f"image_id,path,colour\nnew-1,{row['path']},puce\nnew-2,{row['path']},puce\n"
    )
    argv += ["--new", str(tmp_path / "new.csv"), "--category", "dress"]
    serving = ["--bundle", "models:/raycd@champion", "--gallery", str(tmp_path / "g.sqlite")]
    with Service(*serving, log=tmp_path / "service.log") as service, Client(service.url) as asking:
        assert served(asking) == bundle.verify(old).digest[:12]
        argv += ["--service", service.url, "--hup", str(service.pid)]
        assert refresh.program(argv) == 0, capsys.readouterr().err
        said = capsys.readouterr()
        digest = bundle.verify(tmp_path / "week/bundle").digest
        assert served(asking) == digest[:12]
        found = asking.search(image_id="new-1", text="is red", attributes={"colour": ["puce"]})
        assert [one.category for one in found.results] == ["dress"] * 2
    now = client.get_model_version_by_alias("raycd", "champion")
    assert str(now.version) != before, said.out
    assert now.tags["raycd.bundle"] == digest
    # The encoder stays: the live gallery's features are the new bundle's, too
    encoders = {bundle.verify(one).encoder.fingerprint for one in (old, tmp_path / "week/bundle")}
    assert len(encoders) == 1
    with GalleryDatabase.open(str(tmp_path / "g.sqlite")) as gallery_db:
        assert gallery_db.encoders() == {encoders.pop(): gallery_db.count()}
        assert gallery_db.count() == len(bundle.read_gallery(old)) + 2
    assert refresh.program(argv) == 0
    said = capsys.readouterr()
    assert all(f"{step}: done before" in said.err for step in STEPS)
    assert client.get_model_version_by_alias("raycd", "champion").version == now.version
    # Other rows and another metric are other steps; what was moved stays moved
    with (tmp_path / "new.csv").open("a") as file:
        file.write(f"new-3,{row['path']},red\n")
    assert refresh.program([*argv, "--registry.metric", "recall@50"]) == 0
    said = capsys.readouterr()
    again = [step for step in STEPS if f"{step}: done before" not in said.err]
    assert again == ["catalogue", "judge"]
    assert "recall@50" in said.out
    assert "champion:" in said.out
    with GalleryDatabase.open(str(tmp_path / "g.sqlite")) as gallery_db:
        assert gallery_db.count() == len(bundle.read_gallery(old)) + 3
    assert refresh.program([*argv, "--registry.metric", "recall@7", "--seed", "1"]) == 2
    said = capsys.readouterr()
    assert "no such metric" in said.err
    assert "stage2: done in" not in said.err
    argv[argv.index("models:/raycd@champion")] = str(old)
    assert refresh.program(argv) == 2
    assert "against another champion" in capsys.readouterr().err


def test_a_refresh_trains_on_a_manifest_without_val_triplets(tmp_path: Path) -> None:
    builder = DatasetBuilder()
    builder.add_gallery("all", "train", [f"i{n}" for n in range(9)], source="x")
    for n in range(8):
        row = TripletRow(f"t{n}", "all", "train", f"i{n}", f"i{n + 1}", ["is red"])
        builder.add_triplet(row, where="here")
    (tmp_path / refresh.FEEDBACK).mkdir()
    manifest.write(builder.build({}), tmp_path / refresh.FEEDBACK)
    step = refresh.Refresh(Config(), argparse.Namespace(into="week"), tmp_path)
    trained, measured = (step._trained_config({"val": val}) for val in (0, 3))
    assert len(reading.dataset(trained, trained.data.root).triplets) == 8
    with pytest.raises(DataError, match="no triplets to evaluate on"):
        reading.dataset(measured, measured.data.root)


def test_a_head_that_takes_no_negatives_gets_triplets_without_any(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(finished.folder / "bundle", tmp_path / "g.sqlite", 20)
    argv = ["--config", settings_file(finished, tmp_path), "--support", "1"]
    argv += ["--gallery", str(tmp_path / "g.sqlite")]

    def negatives(name: str, *more: str) -> set[str]:
        assert feedback.program([*argv, "--out", str(tmp_path / name), *more]) == 0
        found = reader.read(str(tmp_path / name), TRIPLETS_FILE, GALLERY_FILE).triplets
        return {str(own) for own in found["negatives"].to_pylist() if own}

    assert negatives("some")
    assert not negatives("none", "--negatives", "0")
    assert "takes no hard negatives" not in capsys.readouterr().err
    assert not negatives("dcnet", "--stage2.head", "dcnet")
    assert "the loss of the head dcnet takes no hard negatives" in capsys.readouterr().err


def test_triplets_are_made_anew_where_pictures_or_data_have_changed(
    finished: Finished, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(finished.settings["data"]["root"], data)
    config = finished.config(data={"root": str(data)})
    rules = {"since": "", "support": 2, "correct": "auto", "held_back": 0.1, "negatives": 1}

    def of(pictures: str) -> list[str]:
        asked = argparse.Namespace(pictures=pictures, **rules)
        return refresh.Refresh(config, asked, tmp_path)._rules("g.sqlite")

    before = of("")
    assert before == of("")
    assert before != of("s3://bucket/pictures")
    [file, *_] = (data / "captions").glob("cap.*.train.json")
    file.write_text(json.dumps(json.loads(file.read_text())[1:]))
    assert before != of("")


def test_a_refresh_says_what_it_lacks(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--config", settings_file(finished, tmp_path), "--gallery", "g.sqlite", "--into", "x"]
    for more, about in (
        ([], "--champion"),
        (["--champion", "c", "--hup", "1"], "--service"),
        (["--champion", "c", "--hup", "0", "--service", "http://s"], "--hup: impossible value"),
        (["--champion", "c", "--into", "a/../b"], "letters, digits, _ . and -"),
        (["--champion", "models:/raycd/1"], "no alias"),
        (["--champion", "c", "--runs", "s3://b/runs"], "on this machine"),
        (["--champion", "models:/shop@champion"], "--tracking.model shop"),
        (["--champion", "c", "--stage2.head", "sum"], "learns from no triplet"),
        (["--champion", finished.outcome.run.path("bundle")], "is a stage of a run"),
    ):
        assert refresh.program([*argv, *more]) == 2
        assert about in capsys.readouterr().err
