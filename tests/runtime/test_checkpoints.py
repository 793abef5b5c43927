"""Checkpoints of Ray Train on a store."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray.train import Checkpoint

from raycd.run import open_uri
from raycd.runtime import training


def test_a_checkpoint_is_fetched_from_a_store_and_nothing_else_is_left_on_the_disk(
    s3: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, temporary, folder = f"s3://raycd/{tmp_path.name}", tmp_path / "t", tmp_path / "fetched"
    monkeypatch.setenv("RAY_TMPDIR", str(temporary))
    temporary.mkdir()
    folder.mkdir()
    store, path = open_uri(uri)
    for name in ("history.json", "encoder/weights.bin"):
        store.pipe_file(f"{path}/{name}", name.encode())
    file_system, place = training._storage(uri)
    assert training._fetched(Checkpoint(place, file_system), folder) == folder
    found = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert found == {"history.json", "encoder/weights.bin"}
    assert (folder / "encoder" / "weights.bin").read_bytes() == b"encoder/weights.bin"
    assert list(temporary.iterdir()) == []
