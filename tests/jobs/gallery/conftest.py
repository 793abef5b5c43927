"""A small gallery in each kind of database."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raycd.gallery.records import Delete, Put
from raycd.gallery_db import GalleryDatabase
from raycd.gallery_db.pictures import Pictures
from tests.jobs.gallery.galleries import FEATURE, OURS, uploaded


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return that of an empty database of each kind."""
    if request.param == "sqlite":
        return str(tmp_path / "gallery.sqlite")
    name = f"gallery_{time.monotonic_ns()}"
    return str(request.getfixturevalue("postgres").create(name))


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    """Return where the service would keep those of `tmp_path / gallery.sqlite`."""
    return Pictures(str(tmp_path / "gallery.sqlite.pictures"))


@pytest.fixture
def gallery_db(url: str, pictures: Pictures) -> Iterator[GalleryDatabase]:
    """Open one of three images: with an uploaded picture, with a feature only, and deleted."""
    with GalleryDatabase.open(url) as opened:
        opened.write(
            [uploaded("uploaded", pictures), Put("bare", FEATURE), Put("gone", FEATURE)], OURS
        )
        opened.write([Delete("gone")], OURS)
        yield opened
