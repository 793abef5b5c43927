"""What measures on val says so of a data set without val triplets, before anything is trained."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from jobs import ablate, compare, evaluate
from tune import sweep


@pytest.fixture
def settings(tmp_path: Path) -> str:
    """Return a file of settings that names a catalogue without triplets."""
    rows = [f"{n},{n}.jpg,{colour}" for n, colour in enumerate(["red", "blue"] * 3)]
    (tmp_path / "gallery.csv").write_text("\n".join(["image_id,path,colour", *rows]))
    data = {"format": "catalogue", "root": str(tmp_path), "gallery": "gallery.csv"}
    settings = {"name": "shop", "runs": str(tmp_path / "runs"), "data": data}
    (tmp_path / "shop.yaml").write_text(yaml.safe_dump(settings))
    return str(tmp_path / "shop.yaml")


@pytest.mark.parametrize("program", [compare.program, ablate.program, sweep.program])
def test_a_catalogue_without_val_triplets_is_refused(
    program: Callable[[list[str]], int],
    settings: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert program(["--config", settings]) == 2
    assert "heads are compared on val, and the data set has no val triplets\n" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("asked", ["--endpoint=http://127.0.0.1:9", "--bundle=nowhere"])
def test_a_service_or_a_bundle_is_not_asked_of_it(
    asked: str, settings: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.program(["--config", settings, asked]) == 2
    assert "the split val has no triplets" in capsys.readouterr().err
