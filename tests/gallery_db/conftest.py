"""Databases for the tests of the gallery database: each test gets a new one, of SQLite and of
PostgreSQL.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from raycd.gallery_db import GalleryDatabase


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a new, empty database is."""
    if request.param == "sqlite":
        return str(tmp_path / "gallery.sqlite")
    created: str = request.getfixturevalue("postgres").create(f"gallery_{uuid.uuid4().hex}")
    return created


@pytest.fixture
def gallery_db(url: str) -> Iterator[GalleryDatabase]:
    """It, open."""
    with GalleryDatabase.open(url) as opened:
        yield opened
