"""Databases for the tests of the gallery database: a new one for each test and kind."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import gallery
from raycd.gallery_db import GalleryDatabase


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the address of a new, empty database."""
    if request.param == "sqlite":
        return str(tmp_path / "gallery.sqlite")
    created: str = request.getfixturevalue("postgres").create(f"gallery_{uuid.uuid4().hex}")
    return created


@pytest.fixture
def gallery_db(url: str) -> Iterator[GalleryDatabase]:
    """Open the database."""
    with GalleryDatabase.open(url) as opened:
        yield opened


@pytest.fixture
def run(url: str, tmp_path: Path) -> Callable[..., int]:
    """Return what imports a table or a path."""

    def imported(what: pa.Table | Path, *more: str) -> int:
        path = what if isinstance(what, Path) else tmp_path / "table.parquet"
        if isinstance(what, pa.Table):
            pq.write_table(what, path)
        return gallery.main(["import", "--gallery", url, "--from", str(path), *more])

    return imported
