"""The whole pipeline on tiny demo data, once for the tests of this folder."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raycd.config import Config, SyntheticConfig
from raycd.data.demo.synthetic import write_demo_data
from raycd.runtime import pipeline
from tests.runtime.finished import Finished, merged


@pytest.fixture(scope="session")
def fashion(
    tmp_path_factory: pytest.TempPathFactory, tiny_settings: dict[str, Any]
) -> tuple[Path, dict[str, str]]:
    """Write Fashion-IQ's files; the first val target is broken, the first train one missing."""
    root = tmp_path_factory.mktemp("fashion")
    write_demo_data(root, SyntheticConfig.model_validate(tiny_settings["data"]["synthetic"]))
    broken, missing = (
        json.loads((root / "captions" / f"cap.{name}.json").read_text())[0]["target"]
        for name in ("dress.val", "shirt.train")
    )
    (root / "images" / f"{broken}.jpg").write_bytes(b"no image")
    (root / "images" / f"{missing}.jpg").unlink()
    return root, {broken: "not_an_image", missing: "missing"}


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_settings: dict[str, Any],
    fashion: tuple[Path, dict[str, str]],
    ray_cluster: None,
) -> Finished:
    runs = tmp_path_factory.mktemp("runs")
    settings = merged(
        tiny_settings, {"runs": str(runs), "data": {"format": "fashioniq", "root": str(fashion[0])}}
    )
    outcome = pipeline.run(Config.model_validate(settings))
    return Finished(settings, outcome, runs / "tiny", fashion[1])


@pytest.fixture
def copied(finished: Finished, tmp_path: Path) -> Finished:
    """Return a copy of the run that may be changed; it keeps no MLflow record."""
    ignore = shutil.ignore_patterns(".train", ".lock")
    shutil.copytree(finished.folder, tmp_path / "tiny", ignore=ignore)
    return replace(
        finished, folder=tmp_path / "tiny", settings=finished.settings | {"runs": str(tmp_path)}
    )
