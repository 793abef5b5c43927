"""tune/sweep.py in a user's hands: what it leaves, what it refuses, and that it goes on after any
end.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from raycd.config import cli
from raycd.runtime import pipeline
from raycd.runtime.stages.context import Context
from tests.packages import HALVES, install
from tests.processes import started, wait_for
from tune import sweep
from tune.journal import Journal
from tune.space import make_space

PROGRAM = "tune/sweep.py"
Mined = Any


@pytest.fixture
def my_yaml(mined: Mined, tmp_path: Path) -> Path:
    """Write the tiny settings as a user's own file, for a copy of the mined run in this test's
    own folder.
    """
    return prepared(mined, tmp_path)


def prepared(mined: Mined, folder: Path) -> Path:
    shutil.copytree(
        mined.run.root, folder / "tiny", ignore=shutil.ignore_patterns(".train", ".lock")
    )
    path = folder / "my.yaml"
    tree = mined.config(folder).model_dump(mode="json")
    path.write_text(
        yaml.safe_dump({name: tree[name] for name in (*mined.settings, "runs", "tune")})
    )
    return path


def here(my_yaml: Path, *argv: str) -> int:
    """Run the job in this process, on the session's cluster."""
    return cli.run(
        sweep.main,
        ["--config", str(my_yaml), *argv],
        prog="tune/sweep.py",
        description="",
        flags=sweep.flags,
    )


def trials(my_yaml: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in (my_yaml.parent / "tiny-sweep" / "trials").glob("*.json")
    }


@pytest.mark.slow
def test_a_sweep_prints_the_trials_and_the_verdict_and_leaves_what_train_reads(
    my_yaml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert here(my_yaml, "--samples", "2") == 0
    shown = capsys.readouterr().out
    assert re.search(
        r"^trial  selection, %  epochs +mine\.eps_low +mine\.eps_high +mine\.s_max", shown
    )
    assert len(re.findall(r"^ +[01]  +\d+\.\d\d  +\d+ ", shown, re.MULTILINE)) == 2
    assert re.search(
        r"^(the winner is (no )?better than the default: |no trial was better)", shown, re.MULTILINE
    )
    folder = my_yaml.parent / "tiny-sweep"
    assert f"best:    {folder / 'best.yaml'}" in shown
    result = json.loads((folder / "result.json").read_text())
    assert result["seeds"] == 2
    assert list(result["metrics"]) == ["recall@10", "recall@50"]
    records = [json.loads(data) for _, data in sorted(trials(my_yaml).items())]
    assert [record["number"] for record in records] == [0, 1]
    finals: dict[str, list[Any]] = {}
    for path in sorted((folder / "finals").glob("*.json")):
        finals.setdefault(path.name.rpartition("-")[0], []).append(json.loads(path.read_text()))
    assert "default" in finals
    assert all([final["seed"] for final in two] == [0, 1] for two in finals.values())
    means = {name: sum(final["selection"] for final in two) / 2 for name, two in finals.items()}
    winner = max(means, key=lambda name: (means[name], name == "default"))
    settings = finals[winner][0]["settings"]
    best = cli.parse(
        ["--config", str(folder / "best.yaml")], prog="jobs/train.py", description=""
    ).config
    flat = {"mine": best.mine.model_dump(), "stage2": best.stage2.model_dump()}
    assert {n: flat[n.partition(".")[0]][n.partition(".")[2]] for n in settings} == settings

    kept = trials(my_yaml)
    assert (
        here(my_yaml, "--samples", "2") == 0
    )  # the same command goes on, here with nothing left to do
    assert capsys.readouterr().out == shown
    assert trials(my_yaml) == kept


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--tune.metric", "recall@7"], "there is no such metric\n  got:      recall@7\n"),
        (
            ["--tune.metric", "sofa/recall@10"],
            "there is no such metric\n  got:      sofa/recall@10\n",
        ),
        (["--space", "mine.alpha=0.9,0.1"], "the range of mine.alpha is empty\n"),
        (
            ["--space", "mine.alhpa=0,1"],
            "unknown setting\n  got:      mine.alhpa (--space)\n  expected: did you mean",
        ),
        (["--space", "stage1.lr=0,1"], "a trial cannot change this setting\n"),
        (
            ["--space", "stage2.bilinear_dim=8,4096"],
            "the space holds an impossible value of stage2.bilinear_dim",
        ),
        (["--stage2.select_on", "val"], "trials are judged on the selection split"),
        (["--stage2.pseudo", "false"], "a sweep of this configuration would search nothing"),
        (["--tune.epochs", "1"], "no trial would come to an epoch of pseudo triplets"),
        (["--samples", "0"], "tune.samples: impossible value"),
        (["--samples", "many"], "argument --samples: invalid int value"),
        (["--resume"], "there is no sweep to resume in "),
        (["--sweep", "tiny"], "the run folder "),
    ],
)
def test_a_mistake_is_one_message_and_code_2(
    argv: list[str], message: str, my_yaml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert here(my_yaml, *argv) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err
    assert said.err.count("error: ") == 1
    assert said.err.partition("error: ")[2].startswith(message)
    assert trials(my_yaml) == {}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--tune.metric", "sofa/recall@10"],
            "there is no such metric\n  got:      sofa/recall@10\n",
        ),
        (["--resume"], "there is no sweep to resume in "),
        (["--sweep", "tiny"], "the run folder "),
        (["--sweep", "old"], "the sweep in "),
        (["--sweep", "old", "--resume"], "the sweep in "),
    ],
)
@pytest.mark.parametrize("drawn", [True, False], ids=["synthetic", "fashioniq"])
def test_a_mistake_is_told_before_anything_is_drawn_or_embedded(
    argv: list[str],
    message: str,
    drawn: bool,
    mined: Mined,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tree = mined.config(tmp_path).model_dump(mode="json")
    if not drawn:
        tree["data"] |= {"format": "fashioniq", "root": mined.run.path("catalogue")}
    path = tmp_path / "my.yaml"
    path.write_text(
        yaml.safe_dump({name: tree[name] for name in (*mined.settings, "runs", "tune")})
    )
    config = cli.parse(["--config", str(path)], prog="", description="").config
    old = Journal(str(tmp_path / "old"), pipeline.run_folder(config).root)
    with old.opened(make_space(config, ["stage2.k=none"]), {}, {}, resume=False):
        old.write({"number": 0, "status": "failed", "value": None})

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the pipeline has begun")

    monkeypatch.setattr(pipeline, "run", never)
    assert here(path, *argv) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}")


def test_a_run_is_held_while_a_sweep_reads_it_and_free_afterwards(
    my_yaml: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(context: Context, *_: object) -> None:
        pipeline.run(context.config, until="mine")

    monkeypatch.setattr(sweep, "_sweep", train)  # another job, while trials run
    assert here(my_yaml) == 2
    folder = my_yaml.parent / "tiny"
    assert f"error: the run {folder} is in use\n" in capsys.readouterr().err
    monkeypatch.setattr(sweep, "_sweep", lambda *_: None)
    assert here(my_yaml) == 0
    config = cli.parse(["--config", str(my_yaml)], prog="", description="").config
    assert pipeline.run(config, until="mine").done == []


def test_a_head_without_weights_is_refused_whatever_it_says_of_itself(
    mined: Mined,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    install(
        *(monkeypatch, tmp_path / "site", "halves", HALVES),
        "[raycd.heads]\nhalves = halves:build\n",
    )
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump(mined.config(tmp_path / "runs").model_dump(mode="json")))
    assert here(path, "--stage2.head", "halves") == 2
    said = capsys.readouterr().err
    assert "a sweep of this configuration would search nothing\n" in said
    assert not (tmp_path / "runs" / "tiny" / "stage1").exists()


def test_a_data_set_without_triplets_to_train_on_is_refused_before_anything_is_embedded(
    mined: Mined, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "my.yaml"
    tree = mined.config(tmp_path / "runs").model_dump(mode="json")
    tree["data"] |= {"format": "fashioniq", "root": mined.run.path("catalogue")}
    tree["compose"] |= {"when": "withhold"}
    path.write_text(yaml.safe_dump(tree))
    assert here(path) == 2
    said = capsys.readouterr().err
    assert "a sweep of this configuration would search nothing\n" in said
    assert ".head sum" in said
    assert not (tmp_path / "runs").exists()


def test_a_mistyped_data_set_makes_no_folder(
    mined: Mined, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump(mined.config(tmp_path / "runs").model_dump(mode="json")))
    argv = ["--data.format", "fashioniq", "--data.root", str(tmp_path / "absent")]
    assert here(path, *argv) == 2
    assert "absent" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_mistake_ends_the_process_with_code_2(my_yaml: Path) -> None:
    job = started(PROGRAM, my_yaml, "--space", "mine.alpha=0.9,0.1")
    out, err = job.communicate(timeout=120)
    assert (job.returncode, out) == (2, "")
    assert err.startswith("error: the range of mine.alpha is empty\n")


@pytest.mark.slow
def test_a_sweep_killed_in_the_middle_goes_on_with_the_trials_that_are_left(my_yaml: Path) -> None:
    job = started(PROGRAM, my_yaml, "--samples", "6")
    try:
        wait_for(lambda: any(b'"mlflow"' in data for data in trials(my_yaml).values()), job)
    finally:
        job.send_signal(signal.SIGKILL)
        job.communicate(timeout=60)
    before = {name: data for name, data in trials(my_yaml).items() if b'"mlflow"' in data}
    assert 1 <= len(before) < 6
    job = started(PROGRAM, my_yaml, "--samples", "6")
    out, err = job.communicate(timeout=400)
    assert job.returncode == 0, err
    after = trials(my_yaml)
    assert len(after) == 6
    assert {name: after[name] for name in before} == before
    assert re.search(r"^\d (finished|stopped)", out, re.MULTILINE)

    client = MlflowClient(tracking_uri=f"sqlite:///{my_yaml.parent / 'mlflow.db'}")
    runs = client.search_runs(["1"])
    [parent] = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert (parent.info.run_name, parent.info.status) == ("tiny-sweep", "FINISHED")
    kept = sorted(json.loads(data)["mlflow"]["run"] for data in after.values())
    assert sorted(run.info.run_id for run in runs if run is not parent) == kept
    assert {run.info.status for run in runs} == {"FINISHED"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 256 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(disk)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"no small disk can be mounted: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_told_and_the_sweep_goes_on_after_space_is_made(
    mined: Mined, small_disk: Path
) -> None:
    my_yaml = prepared(mined, small_disk)
    job = started(PROGRAM, my_yaml, "--samples", "5", "--tracking.enabled", "false")
    try:
        wait_for(lambda: trials(my_yaml), job)
        with (small_disk / "filler").open("wb", buffering=0) as filler:
            size = 1 << 20
            while size >= 1:
                try:
                    filler.write(b"x" * size)
                except OSError:
                    size //= 2
        before = trials(my_yaml)
        out, err = job.communicate(timeout=240)
    finally:
        job.kill()
    assert (job.returncode, out) == (2, ""), err
    assert "Traceback" not in err
    assert err.count("error: ") == 1
    assert f"error: no space left on the disk of {small_disk}" in err
    assert trials(my_yaml) == before
    (small_disk / "filler").unlink()
    job = started(PROGRAM, my_yaml, "--samples", "5", "--tracking.enabled", "false")
    out, err = job.communicate(timeout=400)
    assert job.returncode == 0, err
    after = trials(my_yaml)
    assert len(after) == 5
    assert {name: after[name] for name in before} == before
