"""What the previous version wrote is still read: a bundle and a gallery database (see make.py)."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raycd import bundle
from raycd.gallery.records import Delete, Put
from raycd.gallery_db import GalleryDatabase
from tests.previous import make

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """Return what the previous version found in its own files."""
    found: dict[str, Any] = json.loads((HERE / "written.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Unpack the previous version's files."""
    with tarfile.open(HERE / "written.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_a_bundle_of_the_previous_version_answers_as_it_did(
    written: Path, expected: dict[str, Any]
) -> None:
    assert bundle.verify(written / "bundle").raycd == expected["raycd"]
    found = make.results(written / "bundle")
    assert len(found) == len(expected["results"]) == 4
    for now, before in zip(found, expected["results"], strict=True):
        assert [row["image_id"] for row in now] == [row["image_id"] for row in before]
        for one, other in zip(now, before, strict=True):
            known = {name: one[name] for name in other}  # later versions say more
            assert known == pytest.approx(other, abs=1e-4)


def test_a_bundle_of_the_previous_version_keeps_what_is_said_of_its_images(written: Path) -> None:
    rows = bundle.read_gallery(written / "bundle").to_pylist()
    assert [row["image_id"] for row in rows] == [f"image-{n}" for n in range(make.IMAGES)]
    assert rows[0]["categories"] == ["shirt", "toptee"]
    assert rows[0]["attributes"] == [("pattern", "striped")]
    assert rows[1]["path"] == "https://example.org/1.png"


def test_a_gallery_database_of_the_previous_version_holds_the_same_and_takes_a_write(
    written: Path, expected: dict[str, Any]
) -> None:
    with GalleryDatabase.open(str(written / "gallery.sqlite")) as database:
        held = json.loads(json.dumps(make.contents(database)))
        assert held == expected["database"]
        assert held["version"] == 7
        feature = np.arange(1, 7, dtype=np.float32)
        database.write([Put("later", feature, ("dress",)), Delete("own-0")], make.FINGERPRINT)
        now = database.load(make.FINGERPRINT)
        assert now.version == 9
        assert now.table["image_id"].to_pylist() == ["own-3", "own-1", "new", "later"]
        assert now.features_GD[-1].tolist() == feature.tolist()
