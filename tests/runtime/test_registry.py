"""Bundles of MLflow's registry become folders, by version and by alias."""

from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from raycd.config import Config
from raycd.errors import TrackingError
from raycd.model import bundle
from raycd.runtime import registry
from raycd.runtime.tracking import Tracker


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Any) -> Path:
    """A folder of runs with one registered bundle, whose alias is champion."""
    folder = tmp_path_factory.mktemp("runs")
    with Tracker.open(Config(preset="demo"), folder) as tracker:
        version = tracker.register(tiny_bundle.folder)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.set_registered_model_alias("raycd", "champion", str(version))
    return folder


@pytest.fixture(autouse=True)
def _registry(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{runs / 'mlflow.db'}")


@pytest.mark.parametrize("uri", ["models:/raycd/1", "models:/raycd@champion"])
def test_a_registered_bundle_is_fetched_once_and_whole(uri: str, tmp_path: Path, tiny_bundle: Any) -> None:
    folder = registry.fetch(uri, str(tmp_path))
    assert bundle.verify(folder) == bundle.verify(tiny_bundle.folder)
    written = (folder / "manifest.json").stat().st_mtime_ns
    assert registry.fetch(uri, str(tmp_path)) == folder
    assert (folder / "manifest.json").stat().st_mtime_ns == written


@pytest.mark.parametrize("uri", ["models:/raycd@nobody", "models:/raycd/9", "models:/nothing/1"])
def test_what_is_not_registered_is_told(uri: str, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="cannot be fetched"):
        registry.fetch(uri, str(tmp_path))
    assert not any(tmp_path.rglob("manifest.json"))


@pytest.mark.parametrize(
    "uri", ["models:/raycd", "models:/a/b/c", "runs:/x", "models:/raycd@a@b", "models:/raycd/../1"]
)
def test_a_malformed_address_is_told(uri: str, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="malformed"):
        registry.fetch(uri, str(tmp_path))
