"""jobs/compare.py in a user's hands: mistakes, and a comparison that is killed and goes on."""

from __future__ import annotations

import csv
import json
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import compare
from raycd.config import cli
from tests.processes import started

PROGRAM = "jobs/compare.py"
HEADS = ("--heads", "combiner,clip_cd", "--seeds", "2")


@pytest.fixture
def my_yaml(tmp_path: Path, tiny_settings: dict[str, Any]) -> Path:
    """Write the tiny settings as a user's own file."""
    path = tmp_path / "my.yaml"
    stage2 = {**tiny_settings["stage2"], "lr": 1e-2}
    path.write_text(
        yaml.safe_dump(tiny_settings | {"runs": str(tmp_path / "runs"), "stage2": stage2})
    )
    return path


def here(my_yaml: Path, *argv: str) -> int:
    return cli.run(
        compare.main,
        ["--config", str(my_yaml), *argv],
        prog="jobs/compare.py",
        description="",
        flags=compare.flags,
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--heads", "combine"], "--heads names no fusion head\n  got:      combine\n"),
        (["--variants", "with"], "--variants: there is no such variant\n"),
        (["--set", "tirg.stage2"], "--set cannot be read\n"),
        (["--seeds", "0"], "--seeds: impossible value\n"),
        (["--table", "2", "--seeds", "0"], "--seeds: impossible value\n"),
        (["--concurrent", "-1"], "--concurrent: impossible value\n"),
        (["--table", "2", "--concurrent", "-1"], "--concurrent: impossible value\n"),
        (
            ["--table", "2", "--heads", "tirg", "--set", "tirg.stage2.lr=1"],
            "got:      --heads, --set",
        ),
        (
            ["--table", "2", "--stage1.finetune", "lora"],
            "the ablation's rows fine-tune all weights of text, image or both\n",
        ),
        (["--encoder.bundle", "b"], "the heads of a comparison begin anew, all of them\n"),
        (["--table", "3"], "argument --table: invalid choice: 3"),
        (["--evaluate.captions", "both_orders"], "a comparison asks each query once\n"),
        (["--data.format", "fashioniq", "--data.root", "absent"], "data.root"),
    ],
)
def test_a_mistake_is_one_message_and_leaves_no_run(
    argv: list[str], message: str, my_yaml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert here(my_yaml, *argv) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err
    assert said.err.count("error: ") == 1
    assert not (my_yaml.parent / "runs").exists()


def test_an_encoder_of_other_settings_is_refused_before_it_is_trained(
    my_yaml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = my_yaml.parent / "runs" / "tiny" / "compare" / "cells"
    options = cli.parse(["--config", str(my_yaml)], prog="", description="")
    from jobs.comparison.cells import Cells
    from raycd.runtime import pipeline

    inputs = {"embed": "as it was", "mine": "as it was"}
    Cells(pipeline.run_folder(options.config)).claim(options.config, inputs, {})
    cells.mkdir()
    (cells / "combiner-original-0-0123.json").write_text("{}")
    assert here(my_yaml, *HEADS, "--stage1.epochs", "9") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: the encoder or the tables of ")
    assert "  got:      stage1.epochs 9 instead of 1\n" in said
    assert sorted(path.name for path in (my_yaml.parent / "runs" / "tiny").iterdir()) == [
        "compare",
        "run.json",
    ]


@pytest.mark.slow
def test_a_comparison_killed_in_the_middle_goes_on_and_makes_the_tables_of_its_cells(
    my_yaml: Path,
) -> None:
    folder = my_yaml.parent / "runs" / "tiny" / "compare"

    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (folder / "cells").glob("*.json")}

    # A hundred epochs, so that the kill comes while cells are left.
    long = (*HEADS, "--stage2.epochs", "100", "--concurrent", "1")
    job = started(PROGRAM, my_yaml, *long)
    until = time.monotonic() + 400
    try:
        while sum(b'"mlflow"' in data for data in files().values()) < 6:
            assert job.poll() is None, job.communicate()[1]
            assert time.monotonic() < until
            time.sleep(0.02)
    finally:
        job.send_signal(signal.SIGKILL)
        job.communicate(timeout=60)
    before = {name: data for name, data in files().items() if b'"mlflow"' in data}
    job = started(PROGRAM, my_yaml, *long)
    out, err = job.communicate(timeout=400)
    assert job.returncode == 0, err
    after = files()
    assert {name: after[name] for name in before} == before
    # image_only, text_only and sum; of each head and seed: originals twice, pseudo triplets once
    assert len(before) < len(after) == 3 + 2 * 2 * 3
    assert "**At equal epochs, without pseudo triplets**" in out

    records = [json.loads(data) for data in after.values()]
    rows = list(csv.DictReader((folder / "comparison.csv").read_text().splitlines()))
    [row] = [
        row
        for row in rows
        if (row["table"], row["method"], row["metric"])
        == ("epochs-original", "clip_cd", "recall@10")
    ]
    own = [
        record["recalls"]["average"]["recall@10"]
        for record in records
        if record["head"] == "clip_cd"
        and not record["settings"]["stage2.pseudo"]
        and record["settings"]["stage2.epochs"] == 100
    ]
    assert float(row["mean"]) == pytest.approx(sum(own) / 2)
    assert len(own) == 2


@pytest.mark.slow
def test_heads_of_maps_are_compared_and_searched_with_a_run_on_a_store(
    my_yaml: Path, s3: dict[str, str], tmp_path: Path
) -> None:
    store = ("--runs", "s3://raycd/compared", "--tracking.uri", f"sqlite:///{tmp_path}/mlflow.db")
    heads = ("--heads", "combiner,hffca", "--seeds", "1", "--variants", "original")
    small = ("--stage2.epochs", "2", "--tune.seeds", "2", "--tune.finalists", "1")
    job = started(PROGRAM, my_yaml, *heads, *small, *store, environment=s3)
    out, err = job.communicate(timeout=500)
    assert job.returncode == 0, err
    assert "Failed and left out" not in out
    assert re.search(r"^\| hffca +\|", out, re.MULTILINE), out
    sweep = ("--stage2.head", "hffca", "--samples", "2", "--stage2.k", "1")
    job = started("tune/sweep.py", my_yaml, *sweep, *small, *store, environment=s3)
    out, err = job.communicate(timeout=500)
    assert job.returncode == 0, err
    assert len(re.findall(r"^ +[01]  +\d+\.\d\d  +\d+ ", out, re.MULTILINE)) == 2, out
