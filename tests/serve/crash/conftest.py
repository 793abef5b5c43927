"""What the audits of this folder need to know of the bundle that they serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raycd import bundle
from tests.serve.crash.load import Gallery


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Return the file of the service's errors."""
    return tmp_path / "service.log"


@pytest.fixture(scope="session")
def gallery(tiny_bundle: Any) -> Gallery:
    """Return the tiny bundle's gallery."""
    encoder = bundle.verify(tiny_bundle.folder).encoder
    return Gallery(encoder.fingerprint, encoder.dim, tiny_bundle.image_ids)
