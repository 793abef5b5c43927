"""What a run that is started again does, where weights are others or a job was killed late."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from raycd.config import Config
from raycd.errors import ConfigError
from raycd.features.stored import Stored
from raycd.model import encoder as encoders
from raycd.run import Run
from raycd.runtime import cluster, pipeline, precision
from raycd.runtime.stages import begun, weights
from raycd.runtime.stages.context import Context
from raycd.runtime.stages.fitting import storage, storage_name
from tests.runtime.finished import UNTRACKED, Finished

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def other_weights(copied: Finished, monkeypatch: pytest.MonkeyPatch) -> Finished:
    """Return a run without stage 1, whose training gives other weights than before."""

    def train(context: Context, writing: Any) -> None:
        tuned = encoders.load_saved(context.run.local("encoder") / "encoder")
        with torch.no_grad():
            tuned.clip.text_projection *= 1.01
        tuned.save(writing.folder / "encoder")
        writing.record |= {"encoder": tuned.fingerprint(), "dim": tuned.dim}

    changed = [replace(s, work=train) if s.name == "stage1" else s for s in pipeline.STAGES]
    monkeypatch.setattr(pipeline, "STAGES", tuple(changed))
    shutil.rmtree(copied.folder / "stage1")
    return copied


def test_stages_after_stage_1_are_done_again_where_its_weights_are_others(
    other_weights: Finished,
) -> None:
    config = other_weights.config(**UNTRACKED)
    assert pipeline.run(config, until="filter").done == ["stage1", "embed", "mine", "filter"]
    assert pipeline.run(config, until="filter").done == []
    made_with = json.loads((other_weights.folder / "filter" / "stage.json").read_text())["weights"]
    tuned = json.loads((other_weights.folder / "stage1" / "stage.json").read_text())["encoder"]
    assert made_with["stage1"] == tuned


def test_what_was_mined_of_other_images_is_mined_again(copied: Finished) -> None:
    file = copied.folder / "embed" / "stage.json"
    record = json.loads(file.read_text())
    ids = Stored.open(str(file.parent / "images")).keys().to_pylist()
    assert record["rows"] == hashlib.sha256("".join(f"{one}\0" for one in ids).encode()).hexdigest()
    file.write_text(json.dumps(record | {"rows": "of one image more"}))
    config = copied.config(**UNTRACKED)
    assert pipeline.run(config, until="filter").done == ["mine", "filter"]


def test_stages_of_an_earlier_raycd_are_read_as_they_are(other_weights: Finished) -> None:
    for file in other_weights.folder.glob("*/stage.json"):
        record = json.loads(file.read_text())
        del record["weights"]
        file.write_text(json.dumps(record))
    assert pipeline.run(other_weights.config(**UNTRACKED), until="filter").done == ["stage1"]


def test_checkpoints_are_apart_for_each_encoder_of_the_stage_before(tmp_path: Path) -> None:
    run, names = Run(str(tmp_path / "run"), {}), []
    context = Context(Config(), run)
    for weights_hash in ("A", "B", "A"):
        with run.writing("encoder", "the same settings") as writing:
            writing.record["encoder"] = weights_hash
        with run.writing("stage1", "f") as writing:
            names.append(storage(context, writing, "encoder")["name"])
    assert names[0] == names[2] != names[1]


def test_checkpoints_of_a_stage_that_is_whole_are_removed_and_those_of_others_kept(
    copied: Finished,
) -> None:
    record = json.loads((copied.folder / "stage2" / "stage.json").read_text())
    own, other = (
        copied.folder / ".train" / name for name in (record["checkpoints"], "stage2-0123")
    )
    for folder in (own, other):
        (folder / "epoch-0001").mkdir(parents=True)
    assert pipeline.run(copied.config(**UNTRACKED)).done == []
    assert (own.exists(), other.exists()) == (False, True)


def test_a_stage_is_compared_by_the_weights_of_all_stages_before_it() -> None:
    encoder = {"encoder": "A", "fingerprint": "f"}
    stage1 = {"encoder": "B", "weights": weights.of_inputs({"encoder": encoder})}
    embed = {"counts": {}, "weights": weights.of_inputs({"stage1": stage1})}
    stage2 = {"head": "C", "weights": weights.of_inputs({"embed": embed, "filter": embed})}
    found = weights.of_inputs({"stage2": stage2})
    assert found == {"encoder": "A", "stage1": "B", "stage2": "C"}
    record = {"fingerprint": "f", "weights": found}
    assert weights.is_current(record, "f", found)
    assert not weights.is_current(record, "g", found)
    assert not weights.is_current(record, "f", found | {"stage2": "D"})
    assert weights.is_current({"fingerprint": "f"}, "f", found)
    assert weights.is_current(record | {"weights": {"stage1": "B"}}, "f", found)


def left_by_a_kill(folder: Path, stage: str) -> None:
    shards = folder / ".unfinished" / f"{stage}-0123456789abcdef" / "images"
    shards.mkdir(parents=True)
    (shards / "part-00000.parquet").write_bytes(b"shard")
    (folder / ".unfinished" / f".{stage}-0123456789abcdef.1.writing").mkdir()


def test_what_a_job_left_that_was_killed_at_the_end_of_a_stage_is_removed_at_the_next_start(
    copied: Finished,
) -> None:
    left_by_a_kill(copied.folder, "zero_shot")
    left_by_a_kill(copied.folder, "embed")
    config = copied.config(**UNTRACKED)
    assert pipeline.run(config, until="stage1").done == []
    left = [path.name for path in (copied.folder / ".unfinished").iterdir()]
    assert {name.strip(".").partition("-")[0] for name in left} == {"embed"}
    assert pipeline.run(config).done == []
    assert not list((copied.folder / ".unfinished").iterdir())


def test_what_was_computed_in_fp32_or_bf16_is_what_auto_asks_for_and_is_recorded(
    copied: Finished,
) -> None:
    def done(precision: str) -> list[str]:
        settings = {name: {"precision": precision} for name in ("stage1", "embed", "stage2")}
        return pipeline.run(copied.config(**UNTRACKED, **settings), until="zero_shot").done

    def recorded() -> str:
        record = json.loads((copied.folder / "zero_shot" / "stage.json").read_text())
        return str(record["precision"])

    assert done("auto") == []
    assert done("fp32") == []  # on a CPU it is what auto was
    assert recorded() == "fp32"
    assert done("bf16") == ["zero_shot"]
    assert recorded() == "bf16"
    assert done("auto") == []
    assert done("fp32") == ["zero_shot"]


@pytest.mark.parametrize(
    ("stage", "section"),
    [("zero_shot", "embed"), pytest.param("stage1", "stage1", marks=pytest.mark.slow)],
)
def test_what_a_job_has_begun_goes_on_in_its_arithmetic_whatever_auto_is_now(
    stage: str,
    section: str,
    copied: Finished,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def config(precision: str) -> Config:
        return copied.config(**UNTRACKED, **{section: {"precision": precision}})

    def record() -> dict[str, Any]:
        return dict(json.loads((copied.folder / stage / "stage.json").read_text()))

    def shards() -> set[int]:
        return {file.stat().st_ino for file in (copied.folder / stage).rglob("part-*.parquet")}

    with monkeypatch.context() as killed:  # before what is left over was removed
        killed.setattr(Run, "discard_leftovers", lambda *_: None)
        pipeline.run(config("bf16"), until=stage)
    history, embedded = record().get("history"), shards()
    assert history or embedded
    shutil.rmtree(copied.folder / stage)
    capsys.readouterr()
    assert pipeline.run(config("auto"), until=stage).done == [stage]
    assert record()["precision"] == "bf16"
    assert record().get("history") == history, "it was trained anew"
    assert shards() == embedded, "it was embedded anew"
    assert f"{stage}: goes on in bf16, in which it was begun" in capsys.readouterr().err
    assert pipeline.run(config("auto"), until=stage).done == []


def test_a_folder_without_features_or_a_checkpoint_decides_no_arithmetic(tmp_path: Path) -> None:
    run, prints = Run(str(tmp_path), {}), ("of fp32", "of bf16")

    def kind(stage: str) -> str:
        return begun.settled(Config(), run, stage, prints, ["E"]).stage1.precision

    own = tmp_path / ".train" / storage_name("stage1", "of bf16", "E")
    own.mkdir(parents=True)
    (own / "failures.json").write_text("[]")
    (tmp_path / ".unfinished" / "embed-of bf16").mkdir(parents=True)
    assert [kind("stage1"), kind("embed")] == ["fp32", "fp32"]
    for folder in (own / "epoch-0001", tmp_path / ".unfinished" / "embed-of bf16" / "images"):
        folder.mkdir()
    (own / "epoch-0001" / "history.json").write_text("[]")
    assert [kind("stage1"), kind("embed"), kind("stage2")] == ["bf16", "bf16", "fp32"]
    (tmp_path / ".unfinished" / "embed-of fp32" / "images").mkdir(parents=True)
    assert kind("embed") == "fp32", "of both, that of today goes on"


def test_a_stage_that_trains_in_one_precision_and_embeds_in_another_records_both() -> None:
    sections = {"adapt.precision": "bf16", "adapt.lr": 1e-6, "embed.precision": "fp32"}
    assert precision.entry(sections) == {"precision": {"adapt": "bf16", "embed": "fp32"}}
    assert precision.entry({**sections, "adapt.precision": "fp32"}) == {"precision": "fp32"}
    assert precision.entry({"seed": 1}) == {}


def test_where_workers_get_gpus_a_card_says_what_auto_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def precisions(**sections: object) -> list[str]:
        config = precision.settled(Config.model_validate(sections))
        return [config.stage1.precision, config.embed.precision, config.stage2.precision]

    assert precisions() == ["fp32", "fp32", "fp32"]
    monkeypatch.setattr(cluster, "uses_gpu", lambda compute: True)
    if not torch.cuda.is_available():
        with pytest.raises(
            ConfigError, match=r"torch cannot use the GPU(.|\n)*compute\.device cpu"
        ):
            precision._own()
    monkeypatch.setattr(precision, "_of_a_card", lambda job, gpus: "bf16")
    assert precisions(embed={"precision": "fp32"}) == ["bf16", "fp32", "bf16"]
