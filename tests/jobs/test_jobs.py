"""The jobs in a user's hands: every mistake is one clear message and exit code 2, and an
interrupted run continues.
"""

import contextlib
import errno
import json
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from jobs import ablate, embed, evaluate, index, mine, train
from raycd.config import SyntheticConfig, cli
from raycd.data.demo.synthetic import write_demo_data
from tests import refused
from tests.processes import start, wait_for


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory, tiny_settings: dict[str, Any]) -> Path:
    """Write a tiny data set in Fashion-IQ's files."""
    root = tmp_path_factory.mktemp("fashion")
    write_demo_data(root, SyntheticConfig.model_validate(tiny_settings["data"]["synthetic"]))
    return root


@pytest.fixture
def mine_yaml(tmp_path: Path, tiny_settings: dict[str, Any]) -> Path:
    """Write the tiny settings as a user's own file."""
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump(tiny_settings | {"runs": str(tmp_path / "runs")}))
    return path


@pytest.fixture
def fails(mine_yaml: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return what `jobs/train.py --config my.yaml ...` says about a mistake."""

    def run(*argv: str) -> str:
        code = cli.run(
            train.main, ["--config", str(mine_yaml), *argv], prog="jobs/train.py", description=""
        )
        said = capsys.readouterr()
        assert (code, said.out) == (2, ""), said.err
        return only_message(said.err)

    return run


def only_message(said: str) -> str:
    """Return the message at the end of what a job says; progress may stand before it."""
    assert "Traceback" not in said
    assert said.count("error: ") == 1
    return said.partition("error: ")[2]


def read_records(run: Path) -> Mapping[str, str]:
    return {path.parent.name: path.read_text() for path in run.glob("*/stage.json")}


def test_an_absent_data_folder(fails: Callable[..., str], tmp_path: Path) -> None:
    message = fails("--data.format", "fashioniq", "--data.root", str(tmp_path / "no"))
    assert str(tmp_path / "no") in message
    assert not (tmp_path / "runs").exists()


def test_no_data_folder_at_all(fails: Callable[..., str]) -> None:
    assert fails("--data.format", "cirr").startswith("data.root is empty")


def test_malformed_json_is_told_with_file_line_and_column(
    fails: Callable[..., str], tmp_path: Path
) -> None:
    root = tmp_path / "data"
    write_demo_data(
        root, SyntheticConfig(train_images=5, val_images=5, train_triplets=2, val_triplets=2)
    )
    file = root / "captions" / "cap.dress.train.json"
    file.write_text('[\n {"target": "a",\n  "candidate" "b"}\n]')
    message = fails("--data.format", "fashioniq", "--data.root", str(root))
    assert message.startswith(f"{file} is not valid JSON")
    assert "line 3, column 15" in message


def test_an_unknown_category(fails: Callable[..., str], fashion: Path) -> None:
    message = fails(
        "--data.format", "fashioniq", "--data.root", str(fashion), "--data.categories", "dress,sofa"
    )
    assert "sofa" in message
    assert "toptee" in message


def test_an_unknown_option_is_told_with_the_nearest_name(fails: Callable[..., str]) -> None:
    assert "did you mean --stage2.epochs" in fails("--stage2.epoch", "3")


@pytest.mark.parametrize("content", [b"", b"no weights"], ids=["empty", "text"])
def test_unreadable_weights(fails: Callable[..., str], tmp_path: Path, content: bytes) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(content)
    message = fails("--encoder.pretrained", str(weights), "--tracking.enabled", "false")
    assert message.startswith(f"the weights {weights} cannot be read or do not fit the model")
    assert not [path for path in (tmp_path / "runs" / "tiny").iterdir() if path.is_dir()]


@pytest.mark.parametrize(
    ("name", "pretrained", "words"),
    [
        (
            "ViT-B-23",
            "openai",
            "encoder.name names no model\n  got:      ViT-B-23\n  expected: an open_clip model",
        ),
        ("ViT-B-32", "opnai", "the weights 'opnai' of ViT-B-32 cannot be loaded"),
        ("ViT-B-32", "weights.pt", "the weights 'weights.pt' of ViT-B-32 cannot be loaded"),
        ("ViT-B-32", "", "encoder.pretrained is empty"),
    ],
)
def test_a_wrong_encoder_is_refused_before_any_data_are_drawn(
    fails: Callable[..., str], tmp_path: Path, name: str, pretrained: str, words: str
) -> None:
    options = (
        "--encoder.name",
        name,
        "--encoder.pretrained",
        pretrained,
        "--tracking.enabled",
        "false",
    )
    assert fails(*options).startswith(words)
    assert not (tmp_path / "runs" / "tiny" / "catalogue").exists()


def test_a_bilinear_dimension_as_large_as_the_encoder_is_refused_before_any_training(
    fails: Callable[..., str], tmp_path: Path
) -> None:
    message = fails("--stage2.bilinear_dim", "640", "--tracking.enabled", "false")
    assert "stage2.bilinear_dim" in message
    assert not (tmp_path / "runs" / "tiny" / "zero_shot").exists()


def test_an_unknown_head_is_refused_before_any_training(
    fails: Callable[..., str], tmp_path: Path
) -> None:
    assert "did you mean combiner?" in fails(
        "--stage2.head", "combine", "--tracking.enabled", "false"
    )
    assert not (tmp_path / "runs" / "tiny" / "zero_shot").exists()


def test_a_run_folder_of_another_data_set(
    fails: Callable[..., str], fashion: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "tiny"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"format": "cirr", "root": "/data/cirr"}))
    message = fails("--data.format", "fashioniq", "--data.root", str(fashion))
    assert "belongs to another run" in message
    assert "--name" in message


def test_a_folder_that_is_no_run(fails: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "runs" / "tiny" / "holiday photos").mkdir(parents=True)
    assert "holds other things than a run" in fails()


def test_a_runs_folder_that_is_a_file(fails: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be made" in fails("--runs", str(tmp_path / "file"))


def test_a_run_without_a_name(fails: Callable[..., str]) -> None:
    assert fails("--name", "").startswith("the run has no name")


def test_mlflow_out_of_reach(
    fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with refused.port() as port:
        message = fails("--tracking.uri", address := f"http://127.0.0.1:{port}")
    assert address in message
    assert not list((tmp_path / "runs" / "tiny").glob("*/stage.json"))


def test_a_ray_cluster_out_of_reach(
    fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:

    def refused(**_: object) -> None:
        raise ConnectionError("no answer")

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refused)
    message = fails("--tracking.enabled", "false")
    assert message.startswith("the Ray cluster at 10.0.0.1:6379 does not answer")


def test_a_full_disk_leaves_the_earlier_stages_and_nothing_half_written(
    fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from raycd.runtime import pipeline

    def full(context: Any, writing: Any) -> None:
        (writing.folder / "half").write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    stages = [
        replace(stage, work=full) if stage.name == "catalogue" else stage
        for stage in pipeline.STAGES
    ]
    monkeypatch.setattr(pipeline, "STAGES", tuple(stages))
    message = fails("--tracking.enabled", "false")
    assert message.startswith("no space left on the disk of")
    assert "bytes free" in message
    run = tmp_path / "runs" / "tiny"
    assert read_records(run).keys() == {"encoder"}
    assert not list(run.rglob("half"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_runs_folder_without_permission(fails: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir(mode=0o500)
    message = fails()
    assert message.startswith("no permission")
    assert str(tmp_path / "runs") in message


@pytest.mark.parametrize(
    "name", ["train", "embed", "mine", "evaluate", "index", "compare", "ablate", "pretrain"]
)
def test_a_mistake_is_one_message_and_code_2_for_every_job(name: str) -> None:
    job = start(f"jobs/{name}.py", "--preset", "demo", "--mine.alpha", "2")
    out, err = job.communicate(timeout=60)
    assert (job.returncode, out) == (2, "")
    assert only_message(err).startswith("mine.alpha: impossible value")


@pytest.mark.slow  # in this process: test_an_absent_data_folder
def test_an_absent_data_folder_is_told_by_the_program_itself(tmp_path: Path) -> None:
    job = start(
        "jobs/train.py", "--preset", "fashioniq", "--data.root", "/no/such", "--runs", str(tmp_path)
    )
    out, err = job.communicate(timeout=120)
    assert (job.returncode, out) == (2, "")
    assert "/no/such" in only_message(err)


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory, tiny_settings: dict[str, Any]) -> Path:
    """Folder of a my.yaml and of the runs that it makes."""
    folder = tmp_path_factory.mktemp("long")
    settings = tiny_settings | {"runs": str(folder / "runs")}
    (folder / "my.yaml").write_text(yaml.safe_dump(settings))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
    ],
)
def test_a_signal_in_stage_1_ends_the_job_and_the_next_start_continues(
    long_run: Path, number: signal.Signals, code: int, word: str
) -> None:
    run = long_run / "runs" / "tiny"
    before = epochs(run)
    job = start("jobs/train.py", "--config", str(long_run / "my.yaml"), "--stage1.epochs", "500")
    try:
        wait_for(lambda: epochs(run) > before, job)
        job.send_signal(number)
        out, err = job.communicate(timeout=60)
    finally:
        job.kill()
    assert (job.returncode, out) == (code, ""), err
    assert err.endswith(f"{word}: run the same command again to continue\n")
    assert "Traceback" not in err
    assert read_records(run).keys() == {"catalogue", "encoder", "zero_shot"}
    assert not list(run.glob(".*.writing"))


@pytest.mark.slow
def test_the_jobs_one_after_another_finish_the_interrupted_run(
    long_run: Path, ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run = long_run / "runs" / "tiny"
    before = read_records(run)
    said = {}
    for name, job in {"embed": embed, "mine": mine, "evaluate": evaluate, "index": index}.items():
        argv, flags = ["--config", str(long_run / "my.yaml")], getattr(job, "flags", None)
        assert cli.run(job.main, argv, prog=f"jobs/{name}.py", description="", flags=flags) == 0
        said[name] = capsys.readouterr().out
    assert before.items() <= read_records(run).items()
    assert said["embed"].startswith("images:   180 embedded, 0 missing or broken\n")
    assert str(run / "embed") in said["embed"]
    assert str(run / "filter" / "pseudo_triplets.parquet") in said["mine"]
    assert "of 88 images have no substitute" in said["mine"]
    assert "CLIP-CD" in said["evaluate"]
    assert f"bundle:      {run / 'bundle'}\nsize:        90 images" in said["index"]
    manifest = json.loads((run / "bundle" / "manifest.json").read_text())
    assert manifest["digest"] in said["index"]
    assert (
        cli.run(
            mine.main, ["--config", str(long_run / "my.yaml")], prog="jobs/mine.py", description=""
        )
        == 0
    )
    again = capsys.readouterr().out
    assert again == said["mine"]


@pytest.mark.slow
def test_the_ablation_has_the_rows_of_table_2(
    ray_cluster: None, mine_yaml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--config", str(mine_yaml), "--tracking.enabled", "false"]
    assert cli.run(ablate.main, argv, prog="jobs/ablate.py", description="") == 0
    table = json.loads((tmp_path / "runs" / "tiny-ablation.json").read_text())
    rows = [
        "w/o FT",
        "w/ FT-Text",
        "w/ FT-Image",
        "w/ FT-Both",
        "w/o Pseudo Data",
        "w/o Bilinear",
        "CLIP-CD",
    ]
    assert list(table["variants"]) == rows
    shown = capsys.readouterr().out
    assert all(row in shown for row in rows)
    assert sorted(path.name for path in (tmp_path / "runs").glob("tiny-*")) == [
        "tiny-ablation.json",
        "tiny-both",
        "tiny-image",
        "tiny-text",
    ]


def epochs(run: Path) -> int:
    """Epochs that the newest whole checkpoint of stage 1 has behind it."""
    counts = [0]
    for file in (run / ".train").glob("*/epoch-*/history.json"):
        with contextlib.suppress(ValueError, OSError):  # being written or deleted
            counts.append(len(json.loads(file.read_text())))
    return max(counts)
