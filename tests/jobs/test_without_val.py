"""What measures on val says so of a data set without val triplets, before anything is trained."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from jobs import ablate, compare
from tune import sweep


@pytest.mark.parametrize("program", [compare.program, ablate.program, sweep.program])
def test_a_catalogue_without_val_triplets_is_refused(
    program: Callable[[list[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{n},{n}.jpg,{colour}" for n, colour in enumerate(["red", "blue"] * 3)]
    (tmp_path / "gallery.csv").write_text("\n".join(["image_id,path,colour", *rows]))
    data = {"format": "catalogue", "root": str(tmp_path), "gallery": "gallery.csv"}
    settings = {"name": "shop", "runs": str(tmp_path / "runs"), "data": data}
    (tmp_path / "shop.yaml").write_text(yaml.safe_dump(settings))
    assert program(["--config", str(tmp_path / "shop.yaml")]) == 2
    assert "heads are compared on val, and the data set has no val triplets\n" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "runs").exists()
