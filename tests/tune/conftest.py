"""A tiny run, mined once, that every sweep here reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from raycd.config import Config
from raycd.evaluate import Metric
from raycd.run import Run
from raycd.runtime import pipeline
from raycd.runtime.stages.context import Context
from tune.space import Space, make_space
from tune.trial import Tables

LIGHT: Mapping[str, Any] = {"epochs": 4, "k": 1, "batch_size": 32, "bilinear_dim": 8}
# alpha and k stay
OUT = ("mine.eps_low", "mine.eps_high", "mine.s_max", "stage2.dropout")
AS_IT_IS = [f"{name}=none" for name in OUT]


@dataclass(frozen=True)
class Mined:
    """A run up to its mined tables, its CLIP as it was. Do not write into it."""

    settings: dict[str, Any]
    run: Run
    tables: Tables
    inputs: dict[str, str]

    def config(self, runs: Path, **tune: Any) -> Config:
        """Return the run's settings with heads that train in a moment, and these of `tune`."""
        changes = {
            "runs": str(runs),
            "stage2": {**self.settings["stage2"], **LIGHT},
            "tune": {"samples": 3, "seeds": 2, "cpus_per_trial": 1.0, "precision": "fp32", **tune},
        }
        return Config.model_validate(self.settings | changes)


@pytest.fixture(scope="session")
def mined(
    tmp_path_factory: pytest.TempPathFactory, tiny_settings: dict[str, Any], ray_cluster: None
) -> Mined:
    runs = tmp_path_factory.mktemp("mined")
    settings = tiny_settings | {"stage1": {"finetune": "none"}}
    config = Config.model_validate(settings | {"runs": str(runs), "tracking": {"enabled": False}})
    run = pipeline.run(config, until="mine").run
    context = Context(config, run)
    inputs = {stage: context.recorded(stage, "fingerprint") for stage in ("embed", "mine")}
    return Mined(settings, run, Tables.of(context, splits=("train", "selection")), inputs)


@pytest.fixture
def small_space(mined: Mined, tmp_path: Path) -> Callable[..., Space]:
    """Return a space of alpha and k, or of what is given, for a sweep in this test's own folder."""

    def make(*overrides: str, **tune: Any) -> Space:
        return make_space(mined.config(tmp_path, **tune), [*AS_IT_IS, *overrides])

    return make


@pytest.fixture
def metric() -> Metric:
    return Metric()
