"""A Milvus and a database for the tests of galleries in a search engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from raycd.gallery_db import GalleryDatabase
from tests.milvus import Milvus


@pytest.fixture(scope="session")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Milvus]:
    """Run a Milvus Lite, which no test ends."""
    with Milvus(tmp_path_factory.mktemp("milvus") / "data") as server:
        yield server


@pytest.fixture
def gallery_db(tmp_path: Path) -> Iterator[GalleryDatabase]:
    """Open a new, empty database."""
    with GalleryDatabase.open(str(tmp_path / "gallery.sqlite")) as opened:
        yield opened
