"""Data sets of hardly any triplets: trained on, or refused in words when they are read."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raycd.config import Config, layers
from raycd.data import targets
from raycd.data.schema import Dataset
from raycd.errors import ConfigError, DataError
from raycd.runtime import pipeline
from raycd.runtime.stages import reading
from raycd.train.loop import Loop, Schedule
from raycd.train.task import Silence

LAST: dict[str, Any] = {"stage1": {"select_on": "last"}, "stage2": {"select_on": "last"}}
Triplet = tuple[str, str, str, str]  # category, split, reference, target


def written(root: Path, triplets: list[Triplet], **settings: Any) -> Config:
    """Write a manifest data set of these triplets."""
    triplets = (
        [*triplets, ("hat", "val", "v0", "v1")] if "without_val" not in settings else triplets
    )
    settings.pop("without_val", None)
    gallery = {
        (category, split, image) for category, split, *images in triplets for image in images
    }
    for name, header, rows in (
        (
            "gallery.csv",
            ["category", "split", "image_id", "path"],
            [[*row, f"{row[2]}.png"] for row in sorted(gallery)],
        ),
        (
            "triplets.csv",
            ["category", "split", "reference", "target", "caption"],
            [[*row, "is red"] for row in triplets],
        ),
    ):
        with open(root / name, "w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
    data = {
        "format": "manifest",
        "root": str(root),
        "gallery": "gallery.csv",
        "triplets": "triplets.csv",
    }
    data |= settings.pop("data", {})
    return Config.model_validate({"data": data, **settings})


def read(config: Config) -> Dataset:
    return reading.dataset(config, config.data.root)


def of_targets(*targets: str, category: str = "hat") -> list[Triplet]:
    return [(category, "train", f"r{number}", target) for number, target in enumerate(targets)]


@pytest.mark.parametrize(
    ("targets", "share", "got"),
    [
        ("t" * 9, 0.1, "1, of which data.selection_fraction 0.1 holds out 0"),
        ("t", 0.1, "1, of which data.selection_fraction 0.1 holds out 0"),
        ("tu", 0.1, "2, of which data.selection_fraction 0.1 holds out 1"),
        ("abcdefghij", 0.99, "10, of which data.selection_fraction 0.99 holds out 9"),
    ],
)
def test_too_few_targets_are_refused_where_they_are_read(
    tmp_path: Path, targets: str, share: float, got: str
) -> None:
    with pytest.raises(DataError, match="too few different targets") as caught:
        read(written(tmp_path, of_targets(*targets), data={"selection_fraction": share}))
    assert got in str(caught.value)
    assert "to do:" in str(caught.value)


def test_two_targets_are_enough_where_none_is_set_aside(tmp_path: Path) -> None:
    data = read(written(tmp_path, of_targets("t", "u"), data={"selection_fraction": 0}, **LAST))
    assert len(data.triplets_of("train")) == 2


def test_targets_that_cannot_be_held_out_matter_only_where_they_choose(tmp_path: Path) -> None:
    """Two categories of one target each: both stay in train."""
    triplets = [*of_targets("t", "t"), *of_targets("u", category="shoe")]
    with pytest.raises(DataError, match="holds out 0"):
        read(written(tmp_path, triplets))
    assert len(read(written(tmp_path, triplets, **LAST)).triplets_of("train")) == 3


def test_a_category_of_one_target_stays_in_train(tmp_path: Path) -> None:
    data = read(
        written(
            tmp_path, [*of_targets("a", "b", "c"), *of_targets("only", "only", category="shoe")]
        )
    )
    assert data.triplets_of("train")["category"].to_pylist().count("shoe") == 2
    assert data.triplets_of("selection")["category"].to_pylist() == ["hat"]


def test_a_data_set_without_val_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no triplets to evaluate on"):
        read(written(tmp_path, of_targets("a", "b", "c"), without_val=True))


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_batches_of_one_triplet_are_refused(stage: str) -> None:
    with pytest.raises(ConfigError, match=f"{stage}.batch_size"):
        layers.build([layers.Layer("command line", {stage: {"batch_size": 1}})])


def test_triplets_none_of_which_can_be_read_end_with_a_message(tmp_path: Path) -> None:
    """As where every train image turned out to be broken, and max_missing allows it."""
    data = read(written(tmp_path, of_targets("a", "b", "c")))
    assert len(targets.readable(data.triplets_of("train"), [])) == 0

    class Nothing:
        name, module = "stage 1", None

        def optimizer(self) -> None:
            return None

        def count(self, epoch: int) -> int:
            return 0

        def kind(self, epoch: int) -> str:
            return "original"

    with pytest.raises(DataError, match="stage 1 has too little to train on") as caught:
        Loop(Nothing(), Schedule(1, 8, 0.1, 0), bar=lambda total, start: Silence())  # type: ignore[arg-type]  # more is not asked of it
    assert "0 original rows for 1 workers" in str(caught.value)


@pytest.mark.slow
def test_the_smallest_data_set_goes_through_the_whole_pipeline(
    ray_cluster: None, tmp_path: Path, tiny_settings: dict[str, Any]
) -> None:
    """Three triplets to train on and choose by, one to evaluate on, and no pseudo triplet."""
    settings = {
        name: value
        for name, value in tiny_settings.items()
        if name not in ("data", "name", "preset")
    }
    config = written(
        tmp_path,
        of_targets("a", "b", "c"),
        **settings,
        runs=str(tmp_path / "runs"),
        name="few",
        tracking={"enabled": False},
    )
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c", "r0", "r1", "r2", "v0", "v1"):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(
            tmp_path / f"{name}.png"
        )
    outcome = pipeline.run(config)
    assert outcome.metrics is not None
    assert outcome.metrics["counts"]["queries"] == {"hat": 1}
