"""A run of the whole pipeline that tests of this folder share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raycd.config import Config
from raycd.runtime import pipeline

UNTRACKED: Mapping[str, Any] = {"tracking": {"enabled": False}}


@dataclass(frozen=True)
class Finished:
    """A finished run that tests read and do not change."""

    settings: dict[str, Any]
    outcome: pipeline.Outcome
    folder: Path
    missing: dict[str, str]

    def config(self, **changes: Any) -> Config:
        return Config.model_validate(merged(self.settings, changes))

    def metrics(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "metrics.json").read_text()))


def merged(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with some fields of some sections changed."""
    both = dict(settings)
    for key, value in changes.items():
        both[key] = merged(both.get(key, {}), value) if isinstance(value, Mapping) else value
    return both
