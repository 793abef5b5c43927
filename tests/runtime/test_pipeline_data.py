"""The pipeline and its data: what is missing or broken, other data sets, and whose run it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from raycd.data.demo.drawing import draw
from raycd.data.demo.garments import random_garment
from raycd.errors import DataError, RunError
from raycd.runtime import pipeline
from tests.runtime.finished import UNTRACKED, Finished

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_missing_and_broken_images_are_counted_listed_and_left_out(finished: Finished) -> None:
    metrics, missing = finished.metrics(), finished.missing
    assert metrics["counts"]["missing_images"] == 2
    assert json.loads((finished.folder / "missing_images.json").read_text())["images"] == missing
    page = (finished.folder / "report.html").read_text()
    assert all(image_id in page for image_id in missing)
    gallery = pq.read_table(finished.folder / "bundle" / "gallery.parquet")["image_id"].to_pylist()
    assert len(gallery) == 3 * 30 - 1
    assert not missing.keys() & set(gallery)
    pseudo = pq.read_table(finished.folder / "filter" / "pseudo_triplets.parquet")
    assert not missing.keys() & {*pseudo["reference"].to_pylist(), *pseudo["target"].to_pylist()}


def test_a_query_that_needs_a_broken_image_is_reported(finished: Finished) -> None:
    [broken] = [
        image_id for image_id, reason in finished.missing.items() if reason == "not_an_image"
    ]
    captions = Path(finished.settings["data"]["root"]) / "captions" / "cap.dress.val.json"
    needing = [
        row
        for row in json.loads(captions.read_text())
        if broken in (row["target"], row["candidate"])
    ]
    evaluated = pipeline.recorded(finished.outcome.run, "evaluate")
    assert evaluated["counts"]["missing_queries"] == {
        "dress": len(needing),
        "shirt": 0,
        "toptee": 0,
    }
    assert len(evaluated["missing"]["queries"]["dress"]) == len(needing) > 0
    assert evaluated["counts"]["missing_gallery"] == {"dress": 1, "shirt": 0, "toptee": 0}


@pytest.mark.slow
def test_too_many_missing_images_end_the_run_and_are_listed(copied: Finished) -> None:
    (copied.folder / "missing_images.json").unlink()
    with pytest.raises(DataError, match=r"2 of 180 images .* are missing or broken") as caught:
        pipeline.run(copied.config(data={"max_missing": 0.0}, **UNTRACKED))
    listed = copied.folder / "missing_images.json"
    assert str(listed) in str(caught.value)
    assert json.loads(listed.read_text())["images"] == copied.missing
    assert pipeline.run(copied.config(**UNTRACKED)).done == []


def test_a_run_of_another_data_set_is_refused(finished: Finished, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(finished.settings["data"]["root"], other)
    with pytest.raises(RunError, match="belongs to another run") as caught:
        pipeline.run(finished.config(data={"root": str(other)}))
    assert str(other) in str(caught.value)


def test_a_relative_root_is_the_same_data_set(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(finished.settings["data"]["root"])
    monkeypatch.chdir(root.parent)
    assert (
        pipeline.run(finished.config(data={"root": root.name}, **UNTRACKED), until="evaluate").done
        == []
    )


def test_a_mistyped_root_does_not_claim_the_run(finished: Finished, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        pipeline.run(finished.config(runs=str(tmp_path), data={"root": str(tmp_path / "no")}))
    assert not (tmp_path / "tiny").exists()


def draw_images(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in names:
        draw(rng, random_garment(rng, "dress"), 48).save(folder / f"{name}.png")


def write_cirr(root: Path) -> dict[str, Any]:
    """Write groups of six, as CIRR has them."""
    for split in ("train", "val"):
        names = [f"{split}-{i}" for i in range(36)]
        draw_images(root / split, names)
        triplets = [
            {
                "pairid": i,
                "reference": names[i],
                "target_hard": names[i - i % 6 + (i + 1) % 6],
                "caption": f"has {i} stripes",
                "img_set": {"id": i // 6, "members": names[i - i % 6 : i - i % 6 + 6]},
            }
            for i in range(36)
        ]
        images = {name: f"./{split}/{name}.png" for name in names}
        for kind, value in (("captions/cap", triplets), ("image_splits/split", images)):
            file = root / f"{kind}.rc2.{split}.json"
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps(value))
    return {"format": "cirr"}


def write_manifest(root: Path) -> dict[str, Any]:
    """Write a user's own data: a CSV gallery and JSON Lines of triplets."""
    names = [f"image-{i}" for i in range(40)]
    draw_images(root / "images", names)
    lines = ["image_id,path", *(f"{name},images/{name}.png" for name in names)]
    (root / "gallery.csv").write_text("\n".join(lines))
    rows = [
        {
            "reference": names[i],
            "target": names[i + 1],
            "caption": f"number {i}",
            "split": "val" if i % 3 else "train",
        }
        for i in range(39)
    ]
    (root / "triplets.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return {"format": "manifest", "gallery": "gallery.csv", "triplets": "triplets.jsonl"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "category"), [(write_cirr, "cirr"), (write_manifest, "all")], ids=["cirr", "manifest"]
)
def test_other_data_sets_run_through(
    finished: Finished, tmp_path: Path, write: Callable[[Path], dict[str, Any]], category: str
) -> None:
    root = tmp_path / "data"
    data = {**write(root), "root": str(root)}
    encoder = {"pretrained": str(finished.folder / "encoder" / "encoder")}
    config = finished.config(runs=str(tmp_path / "runs"), data=data, encoder=encoder, **UNTRACKED)
    run = pipeline.run(config, until="evaluate").run
    variants = pipeline.recorded(run, "evaluate")["variants"]
    assert list(variants) == ["zero_shot", "fine_tuned", "clip_cd"]
    assert all(set(recalls) == {category, "average"} for recalls in variants.values())


def test_images_that_are_put_back_are_picked_up_by_the_same_command(
    finished: Finished, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    data = {**write_manifest(root), "root": str(root)}
    lost = [(root / "images" / f"image-{n}.png") for n in (3, 7)]
    kept = [file.rename(tmp_path / file.name) for file in lost]
    encoder = {"pretrained": str(finished.folder / "encoder" / "encoder")}
    config = finished.config(runs=str(tmp_path / "runs"), data=data, encoder=encoder, **UNTRACKED)
    run = pipeline.run(config, until="zero_shot").run
    assert pipeline.recorded(run, "zero_shot")["counts"]["missing"] == 2
    assert pipeline.run(config, until="zero_shot").done == []
    for file, path in zip(kept, lost, strict=True):
        file.rename(path)
    assert pipeline.run(config, until="zero_shot").done == ["zero_shot"]
    assert pipeline.recorded(run, "zero_shot")["counts"]["missing"] == 0
    assert not run.exists("missing_images.json")
    assert pipeline.run(config, until="zero_shot").done == []
