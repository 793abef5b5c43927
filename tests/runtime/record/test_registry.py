"""Bundles of MLflow's registry become folders, by version and by alias."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from pydantic import ValidationError

from raycd import bundle
from raycd.compare.champion import answers_table
from raycd.config import Config, RegistryConfig
from raycd.errors import TrackingError
from raycd.evaluate import Metric
from raycd.runtime.record import registry
from raycd.runtime.record.tracking import Tracker


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Any) -> Path:
    """Return a folder of runs with one registered bundle, whose alias is champion."""
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
def test_a_registered_bundle_is_fetched_once_and_whole(
    uri: str, tmp_path: Path, tiny_bundle: Any
) -> None:
    folder = registry.fetch(uri, str(tmp_path))
    assert bundle.verify(folder) == bundle.verify(tiny_bundle.folder)
    written = (folder / "manifest.json").stat().st_mtime_ns
    assert registry.fetch(uri, str(tmp_path)) == folder
    assert (folder / "manifest.json").stat().st_mtime_ns == written


def test_of_several_that_want_a_version_at_once_one_fetches_it(
    tmp_path: Path, tiny_bundle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    download, downloads, together = registry._download, [], threading.Barrier(3)

    def slow(source: str, folder: Path) -> None:
        downloads.append(folder)
        time.sleep(0.5)
        download(source, folder)

    def fetch(_: int) -> tuple[Path, int]:
        together.wait()
        folder = registry.fetch("models:/raycd/1", str(tmp_path))
        return folder, (folder / "manifest.json").stat().st_ino

    monkeypatch.setattr(registry, "_download", slow)
    with ThreadPoolExecutor(3) as threads:
        assert len(set(threads.map(fetch, range(3)))) == 1
    assert len(downloads) == 1


def test_an_alias_is_pinned_to_the_version_that_it_names() -> None:
    assert (
        registry.pinned("models:/raycd@champion")
        == registry.pinned("models:/raycd/1")
        == "models:/raycd/1"
    )
    with pytest.raises(TrackingError, match="cannot be fetched"):
        registry.pinned("models:/raycd@nobody")


def test_a_version_never_takes_the_folder_of_another_one(tmp_path: Path, tiny_bundle: Any) -> None:
    own = Config.model_validate({"tracking": {"model": "own"}})
    with Tracker.open(own, tmp_path) as tracker:
        for print_ in ("a", "b"):
            tracker.register(tiny_bundle.folder, fingerprint=print_)
        uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.delete_model_version("own", "1")
        tracker.register(tiny_bundle.folder, fingerprint="c")
    found = {str(one.version): one.source for one in client.search_model_versions("name = 'own'")}
    assert {name: Path(str(source)).name for name, source in found.items()} == {
        "2": "bundle-2",
        "3": "bundle-3",
    }


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


def answers(hits: list[bool]) -> pa.Table:
    """Return answers of one category that have a target at rank 1, or none."""
    ids = [f"t{number}" for number in range(len(hits))]
    triplets = pa.table({"triplet_id": ids, "category": ["dress"] * len(ids)})
    ranks = {name: 1 if hit else None for name, hit in zip(ids, hits, strict=True)}
    return answers_table(triplets, ranks, protocol="original", gallery={"dress": 9})


def test_an_alias_goes_to_the_version_that_beats_the_champion(
    tmp_path: Path, tiny_bundle: Any
) -> None:
    settings = RegistryConfig(alias="champion")
    config = Config.model_validate({"preset": "demo", "tracking": {"model": "promoted"}})
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)

    def version_of(alias: str) -> int:
        return int(client.get_model_version_by_alias("promoted", alias).version)

    def ask(hits: list[bool], **more: str) -> str:
        given = settings.model_copy(update=more)
        with Tracker.open(config, tmp_path) as tracker:
            version = tracker.register(tiny_bundle.folder, "", answers(hits))
            assert version is not None
            told = tracker.give_alias(version, answers(hits), given, Metric())
            again = tracker.give_alias(version, answers(hits), given, Metric())
        assert again == told or "is the champion" in again
        return told

    half = [number % 2 == 0 for number in range(200)]
    assert "is given to version 1 of promoted: no version is champion yet" in ask(half)
    told = ask([False] * 200)
    assert "is not given to version 2 of promoted: recall@10 -50.00 points" in told
    assert told.endswith("against version 1")
    assert version_of("champion") == 1
    more = [hit or number % 3 == 0 for number, hit in enumerate(half)]
    assert "alias challenger is given to version 3" in ask(more, alias="challenger")
    assert version_of("challenger") == 3
    assert version_of("champion") == 1
    with Tracker.open(config, tmp_path) as tracker:
        version = tracker.register(tiny_bundle.folder, "")  # as an earlier raycd did
    client.set_registered_model_alias("promoted", "champion", str(version))
    assert "no answers to compare with" in ask(more)


@pytest.mark.parametrize("alias", ["prod.eu", "latest", "Latest", "v2", "V2", "a b"])
def test_an_alias_that_mlflow_would_refuse_is_refused_before_any_work(
    alias: str, runs: Path
) -> None:
    """As `alias` it would end a whole training, as `champion` nothing would ever be compared."""
    for setting in ("alias", "champion"):
        with pytest.raises(ValidationError):
            RegistryConfig.model_validate({setting: alias})
    client = MlflowClient(registry_uri=f"sqlite:///{runs / 'mlflow.db'}")
    with pytest.raises(MlflowException):
        client.set_registered_model_alias("raycd", alias, "1")


@pytest.mark.parametrize(
    "call", ["list_artifacts", pytest.param("download_artifacts", marks=pytest.mark.slow)]
)
def test_a_champion_whose_answers_cannot_be_fetched_now_is_an_error_and_no_verdict(
    call: str, tmp_path: Path, tiny_bundle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, own = RegistryConfig(alias="champion"), answers([True, False])

    def away(*_: object) -> None:
        raise ConnectionError("no route to the store")

    with Tracker.open(Config(preset="demo"), tmp_path) as tracker:
        first = tracker.register(tiny_bundle.folder, "one", own)
        second = tracker.register(tiny_bundle.folder, "other", own)
        assert first is not None
        assert second is not None
        tracker.give_alias(first, own, settings, Metric())
        monkeypatch.setattr(MlflowClient, call, away)
        with pytest.raises(TrackingError, match="the alias champion could not be set"):
            tracker.give_alias(second, own, settings, Metric())
