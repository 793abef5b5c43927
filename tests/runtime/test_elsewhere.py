"""Where a bundle's features of another data set lie while they are made."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from raycd.config import Config
from raycd.runtime.evaluate import elsewhere


def test_on_a_cluster_they_lie_where_all_machines_reach_them_however_few_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config.model_validate({"runs": str(tmp_path / "runs")})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with elsewhere._shared_folder(config) as folder:
        assert folder.startswith(tempfile.gettempdir())
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with elsewhere._shared_folder(config) as folder:
        assert folder.startswith(f"{tmp_path}/runs/.split-")
        Path(folder).mkdir(parents=True)
    assert not Path(folder).exists()
