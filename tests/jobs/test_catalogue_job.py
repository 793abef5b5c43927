"""jobs/catalogue.py: its table, what it refuses, and the whole on drawn images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import catalogue
from raycd.compare.writing import grid
from raycd.config import Config
from raycd.train.fuse import check_hard_negatives

HEAD = "clip_cd"
CATEGORIES = {f"v{n}": "dress" for n in range(4)}


def measured(**hits: int) -> dict[str, Any]:
    """Return a run whose variants have found so many of the four targets at rank 10."""
    ranks = {
        variant: {name: 10 if n < count else 11 for n, name in enumerate(CATEGORIES)}
        for variant, count in hits.items()
    }
    return {"ranks": ranks, "categories": CATEGORIES}


def shown(own: dict[str, Any]) -> tuple[dict[str, str], str]:
    """Return recall@10 by row of a table of one seed, and what stands below it."""
    found = {
        ("titles", 0): measured(lincir=2),
        ("composed", 0): measured(zero_shot=0, adapted=1, fine_tuned=1, **{HEAD: 2}),
        ("own", 0): own,
    }
    config = Config.model_validate({"evaluate": {"ks": [10]}})
    text = grid(catalogue._table(config, found, [0]), costs=False).markdown()
    lines = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("|")]
    return {name.strip(): recall.strip() for name, recall in lines[2:]}, text


def test_a_row_is_a_variant_of_its_run_and_the_gap_is_told() -> None:
    found, text = shown(measured(zero_shot=0, fine_tuned=3, **{HEAD: 4}))
    names = [name for _, _, name in catalogue.ROWS]
    recalls = ["0.00", "25.00", "50.00", "25.00", "50.00", "75.00", "100.00"]
    assert {name: own.split()[0] for name, own in found.items()} == dict(
        zip(names, recalls, strict=True)
    )
    assert "composed triplets close 50% of the gap to own triplets" in text
    assert "one seed, hence no intervals" in text
    assert "triplets seen" not in text


def test_without_own_train_triplets_there_are_no_rows_of_them() -> None:
    found, text = shown(measured(zero_shot=0, fine_tuned=0, sum=0))
    assert list(found) == [name for run, _, name in catalogue.ROWS if run != "own"]
    assert "gap" not in text


def test_the_head_from_titles_is_asked_for_no_hard_negatives() -> None:
    stage2 = {"hard_negatives": 4, **catalogue.RUNS["titles"]["stage2"]}
    check_hard_negatives(Config.model_validate({"stage2": stage2}))


def test_what_cannot_be_measured_is_told_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gallery.csv").write_text("image_id,path\na,a.png\n")
    argv = ["--preset", "catalogue", "--runs", str(tmp_path / "runs")]
    argv += ["--data.root", str(tmp_path), "--data.gallery", "gallery.csv"]
    for more, about in (
        (["--seeds", "0"], "--seeds: impossible value"),
        (["--evaluate.captions", "both_orders"], "asks each query once"),
        ([], "no val triplets to measure on"),
    ):
        assert catalogue.program([*argv, *more]) == 2
        assert about in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_three_runs_a_seed_make_the_table_and_are_not_done_twice(
    tmp_path: Path,
    tiny_settings: dict[str, Any],
    ray_cluster: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = tiny_settings | {
        "runs": str(tmp_path / "runs"),
        "adapt": {"epochs": 1, "batch_size": 32},
        "compose": {"wording": "demo"},
        "tracking": {"enabled": False},
    }
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(settings))
    argv = ["--config", str(tmp_path / "my.yaml"), "--seeds", "1"]
    assert catalogue.program(argv) == 0, capsys.readouterr().err
    first = capsys.readouterr().out
    assert all(f"| {name} " in first for _, _, name in catalogue.ROWS)
    assert (tmp_path / "runs/tiny-catalogue.md").read_text().strip() in first
    assert catalogue.program(argv) == 0
    again = capsys.readouterr()
    assert again.out == first
    assert "stage2: done before" in again.err
    assert "done in" not in again.err
