"""The Python of docs/notebook.md, run from the first line to the last."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from raycd import bundle, features
from raycd.config import DataConfig, SyntheticConfig
from raycd.data import images
from raycd.data.captions import Wording
from raycd.data.demo.synthetic import write_demo_data
from raycd.data.read import read
from raycd.model.embed import EmbedImages, EmbedTexts
from tests.one_shard import write_whole

DOCUMENT = Path(__file__).parents[1] / "docs" / "notebook.md"


@pytest.fixture
def demo(tiny_bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make what the document reads: runs/demo and a photograph."""
    monkeypatch.chdir(tmp_path)
    run = Path("runs/demo")
    shutil.copytree(tiny_bundle.folder, run / "bundle")
    write_demo_data(
        run / "catalogue",
        SyntheticConfig(train_images=4, val_images=12, train_triplets=2, val_triplets=3),
    )
    dataset, encoder = (
        read(DataConfig(), str(run / "catalogue")),
        bundle.load(run / "bundle").encoder,
    )
    texts = [
        Wording().evaluation(row["captions"]) for row in dataset.triplets_of("val").to_pylist()
    ]
    columns = {
        name: dataset.images[column].to_pylist()
        for name, column in (("key", "image_id"), ("path", "path"))
    }
    tables = {
        "images": EmbedImages(encoder, DataConfig())(columns),
        "texts": EmbedTexts(encoder)({"key": list(dict.fromkeys(texts))}),
    }
    for name, table in tables.items():
        rows = features.to_table(list(table["key"]), list(table["status"]), table["feature"])
        write_whole(str(run / "embed" / name), rows)
    tiny_bundle.images[0].save("photo.jpg")


def test_every_line_runs_and_gives_what_the_document_says(
    demo: None, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(
        r"^```python\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, DOCUMENT.name, "exec"), names)
    assert len(names["results"]) == 5
    assert names["best"].size == names["photo"].size
    assert names["narrowed"]
    assert {result.category for result in names["narrowed"]} <= {"dress", "shirt", "toptee"}
    for found in (names["found"], names["without_head"]):
        assert set(found.recalls) == {"dress", "shirt", "toptee", "average"}
        assert list(found.recalls["average"]) == ["recall@1", "recall@10"]
    assert len(names["found"].ranks) == 9
    assert names["image_BD"].shape[1] == names["text_BD"].shape[1] == names["encoder"].dim
    assert len(capsys.readouterr().out.splitlines()) == 6


def test_the_limits_of_an_image_are_those_of_the_settings_where_none_are_given() -> None:
    for function in (images.load, images.decode):
        defaults = function.__kwdefaults__
        assert defaults is not None
        assert defaults["max_pixels"] == DataConfig().max_pixels
        assert defaults["min_side"] == DataConfig().min_side
