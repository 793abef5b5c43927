"""What the audits of this folder need to know of the bundle that they serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raycd import bundle
from tests.serve.crash.load import Gallery


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where the service's errors go."""
    return tmp_path / "service.log"


@pytest.fixture(scope="session")
def gallery(tiny_bundle: Any) -> Gallery:
    """The tiny bundle's."""
    encoder = bundle.verify(tiny_bundle.folder).encoder
    return Gallery(encoder.fingerprint, encoder.dim, tiny_bundle.image_ids)
