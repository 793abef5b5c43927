"""What tests of encoders share."""

from __future__ import annotations

from types import SimpleNamespace

import pytest


@pytest.fixture
def impatient_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have huggingface_hub ask again at once: of a hub that is away it waits 23 s for each file."""
    http = "huggingface_hub.utils._http.time"
    monkeypatch.setattr(http, SimpleNamespace(sleep=lambda seconds: None))
