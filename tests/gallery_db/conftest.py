"""Databases for the tests of the gallery database: a new one for each test and kind."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

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
