"""From searches and clicks to a better search, over a finished run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mlflow import MlflowClient

from jobs import feedback, refresh
from jobs.benchmarks import feedback as simulated
from raycd import bundle
from raycd.data import manifest as reader
from raycd.feedback import users
from raycd.feedback.manifest import GALLERY_FILE, TRIPLETS_FILE
from raycd.feedback.records import Event, Search
from raycd.gallery_db import GalleryDatabase, events
from raycd.runtime.tracking import Tracker
from tests.runtime.finished import UNTRACKED, Finished, merged


def filled(finished: Finished, file: Path, searches: int, support: int = 1) -> list[Search]:
    """Make a live gallery whose users have always found what they asked for at the third place."""
    folder = finished.folder / "bundle"
    manifest = bundle.verify(folder)
    rows = [
        row for row in bundle.read_gallery(folder).to_pylist() if row["categories"] == ["dress"]
    ]
    ids = [row["image_id"] for row in rows]
    wanted = users.pairs(users.coded([dict(row["attributes"]) for row in rows]), rng(), most=6)
    made: list[Search] = []
    for n, (reference, target) in enumerate(wanted[:searches].tolist()):
        others = [one for one in ids if one not in (ids[reference], ids[target])][:3]
        for again in range(support):
            results = (*others[:2], ids[target], others[2])
            text = f"{n % 7} {' '.join(dict(rows[target]['attributes']).values())}"
            about = (f"{n:030d}{again:02d}", 1e9 + n, ids[reference], text, None, "ab" * 6, 0)
            made.append(Search(*about, results, (2.0, 1.5, 1.0, 0.5)))
    clicks = [
        Event(f"e{one.query_id}", one.query_id, one.at, "click", one.results[2]) for one in made
    ]
    with GalleryDatabase.open(str(file)) as gallery_db:
        gallery_db.begin(
            bundle.gallery_parts(folder),
            manifest.encoder.fingerprint,
            manifest.files[bundle.GALLERY],
        )
        events.write(gallery_db, [*made, *clicks])
    return made


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def settings_file(finished: Finished, folder: Path, **changes: Any) -> str:
    path = folder / "my.yaml"
    path.write_text(yaml.safe_dump(merged(finished.settings, changes)))
    return str(path)


def test_what_people_clicked_becomes_a_manifest_with_its_provenance(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = filled(finished, tmp_path / "g.sqlite", 60, support=2)
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
    filled(finished, file, 3)
    for more, about in (
        (["--gallery", str(file)], "--support"),
        (["--gallery", str(file), "--since", "2100-01-01"], "no feedback"),
        (["--gallery", str(file), "--since", "soon"], "not a date"),
        ([], "--gallery and --out"),
    ):
        assert feedback.program([*argv, *more]) == 2
        assert about in capsys.readouterr().err
    assert not out.exists()


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
def test_a_refresh_moves_the_alias_to_what_is_better_and_does_nothing_twice(
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
    filled(copied, tmp_path / "g.sqlite", 400)
    config = settings_file(copied, tmp_path, stage2={"epochs": 40, "lr": 2e-3})
    argv = ["--config", config, "--into", "week", "--champion", "models:/raycd@champion"]
    argv += ["--gallery", str(tmp_path / "g.sqlite"), "--support", "1", "--held-back", "0.3"]
    row = bundle.read_gallery(old).to_pylist()[0]
    (tmp_path / "new.csv").write_text(f"image_id,path\nnew-1,{row['path']}\nnew-2,{row['path']}\n")
    argv += ["--new", str(tmp_path / "new.csv"), "--category", "dress"]
    assert refresh.program(argv) == 0, capsys.readouterr().err
    said = capsys.readouterr()
    digest = bundle.verify(tmp_path / "week/bundle").digest
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
    again = capsys.readouterr()
    assert all(
        f"{step}: done before" in again.err for step in ("catalogue", "feedback", "judge", "alias")
    )
    assert client.get_model_version_by_alias("raycd", "champion").version == now.version
    argv[argv.index("models:/raycd@champion")] = str(old)
    assert refresh.program(argv) == 2
    assert "against another champion" in capsys.readouterr().err


def test_a_refresh_says_what_it_lacks(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--config", settings_file(finished, tmp_path), "--gallery", "g.sqlite", "--into", "x"]
    for more, about in (
        ([], "--champion"),
        (["--champion", "c", "--hup", "1"], "--service"),
        (["--champion", "models:/raycd/1"], "no alias"),
        (["--champion", "c", "--runs", "s3://b/runs"], "on this machine"),
    ):
        assert refresh.program([*argv, *more]) == 2
        assert about in capsys.readouterr().err
