"""The whole pipeline on tiny demo data, with real Ray and a real MLflow record."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from raycd import bundle
from raycd.config import Config, flatten
from raycd.data.demo.drawing import draw
from raycd.data.demo.garments import random_garment
from raycd.errors import ConfigError
from raycd.features import READABLE
from raycd.features.stored import Stored
from raycd.runtime import cluster, pipeline
from raycd.runtime.record.tracking import Tracker
from raycd.runtime.stages import reading
from raycd.search.query import Query
from raycd.search.searcher import Searcher
from tests.runtime.finished import UNTRACKED, Finished

STAGES = [
    "encoder",
    "zero_shot",
    "stage1",
    "embed",
    "mine",
    "filter",
    "stage2",
    "evaluate",
    "bundle",
]
CATEGORIES = {"dress", "shirt", "toptee"}

pytestmark = pytest.mark.usefixtures("ray_cluster")


def client(runs: Path) -> MlflowClient:
    uri = f"sqlite:///{runs / 'mlflow.db'}"
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, BaseException], pytest.MonkeyPatch]:
    """Return a function that has a stage write something and then fail; `undo()` fixes it."""

    def put(name: str, error: BaseException) -> pytest.MonkeyPatch:
        def work(context: Any, writing: Any) -> None:
            (writing.folder / "half").write_text("half")
            raise error

        changed = [
            replace(stage, work=work) if stage.name == name else stage for stage in pipeline.STAGES
        ]
        monkeypatch.setattr(pipeline, "STAGES", tuple(changed))
        return monkeypatch

    return put


def test_every_stage_of_a_new_run_is_done_in_order(finished: Finished) -> None:
    assert finished.outcome.done == STAGES


def test_metrics_have_the_keys_of_the_contract(finished: Finished) -> None:
    metrics = finished.metrics()
    assert metrics == finished.outcome.metrics
    assert list(metrics) == ["preset", "protocol", "seed", "variants", "counts", "seconds"]
    assert list(metrics["variants"]) == ["zero_shot", "fine_tuned", "clip_cd"]
    for recalls in metrics["variants"].values():
        assert set(recalls) == CATEGORIES | {"average"}
        for cell in recalls.values():
            assert list(cell) == ["recall@10", "recall@50"]
            assert 0 <= cell["recall@10"] <= cell["recall@50"] <= 1
    counts = metrics["counts"]
    assert {"gallery", "queries", "missing_images", "pseudo_triplets"} <= set(counts)
    assert set(counts["gallery"]) == set(counts["queries"]) == CATEGORIES
    assert counts["pseudo_triplets"] > 0
    assert list(metrics["seconds"]) == STAGES


def test_the_report_needs_no_other_file_and_no_network(finished: Finished) -> None:
    page = (finished.folder / "report.html").read_text()
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?!data:|#)[^"'\s>]""", page)
    assert not re.search(r"<(?:link|script|iframe)\b|@import|url\((?!['\"]?(?:data:|#))", page)


def test_the_bundle_loads_and_answers_a_query(finished: Finished) -> None:
    loaded = bundle.load(finished.folder / "bundle")
    image = draw(np.random.default_rng(0), random_garment(np.random.default_rng(0), "dress"), 64)
    [results] = Searcher(loaded).search([Query(image, "is blue", top_k=4)])
    assert len(results) == 4
    assert {result.category for result in results} <= CATEGORIES
    assert loaded.manifest.config == finished.config().model_dump(mode="json")


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_records_what_it_came_from(finished: Finished, name: str) -> None:
    record = json.loads((finished.folder / name / "stage.json").read_text())
    assert record["stage"] == name
    assert re.fullmatch("[0-9a-f]{64}", record["fingerprint"])
    assert record["inputs"] == next(
        list(stage.inputs) for stage in pipeline.STAGES if stage.name == name
    )
    assert Config.model_validate(record["config"]) == finished.config()
    assert record["seconds"] > 0
    assert "counts" in record or name in ("encoder", "stage1", "stage2")


def test_mlflow_has_a_run_for_the_pipeline_and_one_for_each_stage(finished: Finished) -> None:
    mlflow = client(finished.folder.parent)
    [parent] = [
        run for run in mlflow.search_runs(["1"]) if "mlflow.parentRunId" not in run.data.tags
    ]
    assert parent.info.status == "FINISHED"
    assert parent.data.params.keys() == flatten(finished.config()).keys()
    assert (
        parent.data.metrics["clip_cd/average/recall_at_10"]
        == (finished.metrics()["variants"]["clip_cd"]["average"]["recall@10"])
    )
    assert parent.inputs is not None
    [logged] = parent.inputs.dataset_inputs
    assert (logged.dataset.name, len(logged.dataset.digest)) == ("fashioniq", 36)
    assert json.loads(logged.dataset.source) == {"uri": finished.settings["data"]["root"]}
    counts = json.loads(logged.dataset.profile or "")
    assert (counts["images"], counts["triplets val"]) == (180, 60)
    children = {
        run.info.run_name: run
        for run in mlflow.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    }
    assert sorted(children) == sorted(STAGES)
    assert {child.info.status for child in children.values()} == {"FINISHED"}
    names = ["stage1 loss", "stage1 waited", "stage1 gradient_norm", "stage2 loss"]
    epochs = [
        mlflow.get_metric_history(children[stage].info.run_id, name)
        for stage, name in map(str.split, [*names, "stage2 pseudo/loss"])
    ]
    assert [len(history) for history in epochs] == [1, 1, 1, 2, 1]
    [version] = mlflow.search_model_versions("name = 'raycd'")
    assert version.run_id == parent.info.run_id
    assert {file.path for file in mlflow.list_artifacts(parent.info.run_id)} == {
        "bundle",
        "metrics.json",
        "report.html",
    }


def test_a_finished_run_started_again_does_nothing(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("nothing is to be started")

    monkeypatch.setattr(cluster, "connected", refused)
    monkeypatch.setattr(Tracker, "open", refused)
    before = {
        path: path.stat().st_mtime_ns for path in finished.folder.rglob("*") if path.name != ".lock"
    }
    again = pipeline.run(finished.config())
    assert (again.done, again.metrics) == ([], finished.metrics())
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    ("changes", "done"),
    [
        pytest.param(
            {"mine": {"alpha": 0.1}},
            ["filter", "stage2", "evaluate", "bundle"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"stage1": {"finetune": "none"}, "stage2": {"head": "sum"}},
            STAGES[2:],
            marks=pytest.mark.slow,
        ),
        ({"evaluate": {"ks": [5]}}, ["evaluate", "bundle"]),
        ({"index": {"sample": 500}}, ["bundle"]),
        (
            {
                "compute": {"train_workers": 2, "embed_workers": 2, "threads": 1},
                "evaluate": {"batch_size": 7},
                "mine": {"batch_size": 9},
                "embed": {"batch_size": 8},
                "stage1": {"cache_mib": 1, "loader_workers": 1, "decode_on": "cluster"},
            },
            [],
        ),
    ],
    ids=["mine.alpha", "stage1", "evaluate.ks", "index", "how fast it is"],
)
def test_a_changed_setting_redoes_what_it_touches(
    copied: Finished, changes: dict[str, Any], done: list[str]
) -> None:
    changed = copied.config(**changes, **UNTRACKED)
    outcome = pipeline.run(changed)
    assert outcome.done == done
    assert copied.metrics() == outcome.metrics
    assert pipeline.run(changed).done == []


def test_images_are_embedded_once_where_stage_1_leaves_the_encoder_as_it_is(
    copied: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    untuned = copied.config(stage1={"finetune": "none"}, **UNTRACKED)
    assert pipeline.run(untuned, until="embed").done == ["stage1", "embed"]
    before, after = (
        Stored.open(copied.folder / stage / "images") for stage in ("zero_shot", "embed")
    )
    assert after.features().values.equal(before.features().values)
    # Those of the shards with an image that could not be read, which may be there now
    read = re.findall(r"embed images: (\d+)/\1 images", capsys.readouterr().err)
    statuses = [pq.read_table(part)["status"].to_pylist() for part in before.parts]
    again = [own for own in statuses if set(own) != {READABLE}]
    assert [int(number) for number in read] == [sum(map(len, again))]
    assert len(again) < len(statuses)


def test_a_changed_threshold_redoes_what_its_pseudo_triplets_touch(copied: Finished) -> None:
    untrained = {"stage2": {"head": "sum"}, **UNTRACKED}  # a head without weights trains nothing
    pipeline.run(copied.config(**untrained))
    changed = copied.config(mine={"alpha": 0.1}, **untrained)
    outcome = pipeline.run(changed)
    assert outcome.done == ["filter", "stage2", "evaluate", "bundle"]
    assert copied.metrics() == outcome.metrics
    assert pipeline.run(changed).done == []


def test_the_bundle_knows_the_attributes_and_short_texts_of_train(finished: Finished) -> None:
    root = Path(finished.settings["data"]["root"])
    rows = pq.read_table(
        finished.folder / "bundle" / "gallery.parquet", columns=["image_id", "attributes"]
    ).to_pylist()
    said = json.loads((root / "attributes.json").read_text())
    assert {row["image_id"]: dict(row["attributes"]) for row in rows} == {
        row["image_id"]: said[row["image_id"]] for row in rows
    }
    texts = bundle.verify(finished.folder / "bundle").example_texts
    captions = "".join(file.read_text() for file in (root / "captions").glob("*.train.json"))
    assert len(texts) == 12
    assert all(len(text) <= 60 and text[1:] in captions for text in texts)


def test_changed_attributes_redo_the_bundle_alone(copied: Finished) -> None:
    file = Path(copied.settings["data"]["root"]) / "attributes.json"
    before = file.read_text()
    try:
        file.write_text(before.replace("striped", "barred"))
        assert pipeline.run(copied.config(**UNTRACKED)).done == ["bundle"]
    finally:
        file.write_text(before)
    table = pq.read_table(copied.folder / "bundle" / "gallery.parquet", columns=["attributes"])
    assert "barred" in {dict(pairs)["pattern"] for pairs in table["attributes"].to_pylist()}


def test_ctrl_c_in_a_stage_leaves_the_earlier_ones_whole_and_the_run_continues(
    finished: Finished,
    copied: Finished,
    breaking: Callable[[str, BaseException], pytest.MonkeyPatch],
) -> None:
    tracking = {
        "uri": f"sqlite:///{finished.folder.parent / 'mlflow.db'}",
        "experiment": "interrupted",
    }
    config = copied.config(mine={"alpha": 0.1}, stage2={"head": "sum"}, tracking=tracking)
    before = (copied.folder / "evaluate" / "stage.json").read_text()
    patched = breaking("evaluate", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(config)
    patched.undo()
    assert (copied.folder / "evaluate" / "stage.json").read_text() == before
    assert not list(copied.folder.rglob("half"))
    assert not list(copied.folder.glob(".*.writing"))
    known = json.loads((copied.folder / "mlflow.json").read_text())["run_id"]
    assert client(finished.folder.parent).get_run(known).info.status == "KILLED"
    outcome = pipeline.run(config)
    assert outcome.done == ["evaluate", "bundle"]
    assert copied.metrics() == outcome.metrics
    run = client(finished.folder.parent).get_run(known)
    assert (run.info.status, "sum/average/recall_at_10" in run.data.metrics) == ("FINISHED", True)


def test_a_stage_that_fails_is_a_failed_run_and_can_be_continued(
    finished: Finished,
    copied: Finished,
    breaking: Callable[[str, BaseException], pytest.MonkeyPatch],
) -> None:
    tracking = {"uri": f"sqlite:///{finished.folder.parent / 'mlflow.db'}", "experiment": "failed"}
    config = copied.config(evaluate={"ks": [5]}, tracking=tracking)
    patched = breaking("evaluate", RuntimeError("no"))
    with pytest.raises(RuntimeError, match="no"):
        pipeline.run(config)
    patched.undo()
    known = json.loads((copied.folder / "mlflow.json").read_text())["run_id"]
    assert client(finished.folder.parent).get_run(known).info.status == "FAILED"
    before = json.loads((copied.folder / "evaluate" / "stage.json").read_text())
    assert before["config"]["evaluate"]["ks"] == [10, 50]
    assert pipeline.run(copied.config(evaluate={"ks": [5]}, **UNTRACKED)).done == [
        "evaluate",
        "bundle",
    ]


@pytest.mark.slow
def test_a_stage_that_fails_after_its_shards_are_written_encodes_none_again(
    copied: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = pq.read_table(copied.folder / "embed" / "images" / "part-00000.parquet")
    shutil.rmtree(copied.folder / "embed")
    with monkeypatch.context() as patch:
        patch.setattr(Stored, "report", lambda stored: stored.broken)  # it is no attribute
        with pytest.raises(AttributeError):
            pipeline.run(copied.config(**UNTRACKED), until="embed")
    written = {
        str(path): path.stat().st_ino
        for path in (copied.folder / ".unfinished").rglob("part-*.parquet")
    }
    assert len(written) >= 2
    assert pipeline.run(copied.config(**UNTRACKED), until="embed").done == ["embed"]
    kept = (copied.folder / "embed").rglob("part-*.parquet")
    assert {path.stat().st_ino for path in kept} == set(written.values())  # the same files
    assert not list((copied.folder / ".unfinished").iterdir())
    after = pq.read_table(copied.folder / "embed" / "images" / "part-00000.parquet")
    assert after["key"].equals(before["key"])


@pytest.mark.parametrize(
    ("changes", "done"),
    [
        ({}, ["evaluate", "bundle"]),
        pytest.param(
            {"mine": {"alpha": 0.001}},
            ["filter", "stage2", "evaluate", "bundle"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["measured", "trained on"],
)
def test_features_of_an_earlier_raycd_are_read_as_they_are(
    copied: Finished, changes: dict[str, Any], done: list[str]
) -> None:
    for stage in ("zero_shot", "embed"):
        for unit in ("images", "texts"):
            folder = copied.folder / stage / unit
            table = pa.concat_tables(Stored.open(folder).blocks())
            pq.write_table(table, copied.folder / stage / f"{unit}.parquet")
            shutil.rmtree(folder)
    variants = copied.metrics()["variants"]
    changed = copied.config(evaluate={"ks": [10, 50, 60]}, **changes, **UNTRACKED)
    outcome = pipeline.run(changed)
    assert outcome.done == done
    assert outcome.metrics is not None
    for name in ("zero_shot", "fine_tuned"):
        found = outcome.metrics["variants"][name]["average"]["recall@10"]
        assert found == variants[name]["average"]["recall@10"]


def test_a_head_that_does_not_fit_is_refused_before_stage_1(copied: Finished) -> None:
    with pytest.raises(ConfigError, match="bilinear_dim"):
        pipeline.run(copied.config(stage1={"lr": 1.0}, stage2={"bilinear_dim": 4096}, **UNTRACKED))


def test_a_run_without_a_name_is_refused(finished: Finished) -> None:
    with pytest.raises(ConfigError, match="no name"):
        pipeline.run(finished.config(name=""))


def test_runs_in_a_submitted_jobs_own_copy_are_warned_of(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1" / "runs"
    encoder = {"pretrained": str(finished.folder / "encoder" / "encoder")}
    pipeline.run(finished.config(runs=str(runs), encoder=encoder, **UNTRACKED), until="encoder")
    assert f"warning: {runs / 'tiny'} lies in this job's copy" in capsys.readouterr().err


def test_nothing_of_the_selection_split_and_no_triplet_of_the_data_set_is_a_pseudo_triplet(
    finished: Finished,
) -> None:
    data = reading.dataset(finished.config(), finished.settings["data"]["root"])
    pseudo = pq.read_table(finished.folder / "filter" / "pseudo_triplets.parquet").to_pylist()
    held, annotated = data.triplets_of("selection").to_pylist(), data.triplets.to_pylist()
    assert pseudo
    assert held
    images = {row[side] for row in held for side in ("reference", "target")}
    assert sum(row[row["side"]] in images for row in pseudo) == 0
    assert {row["target"] for row in pseudo} & {row["target"] for row in held} == set()
    known = {(row["reference"], row["target"]) for row in annotated}
    assert sum((row["reference"], row["target"]) in known for row in pseudo) == 0
    counts = json.loads((finished.folder / "mine" / "stage.json").read_text())["counts"]
    assert counts["held_out"] == len(images)
