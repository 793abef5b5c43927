"""What is told of the demo's time."""

from __future__ import annotations

import pytest
import torch

from raycd.config import Config, presets
from raycd.train import forecast


def test_the_demos_own_settings_are_known_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    demo = dict(presets.load("demo"))
    assert forecast.knows(Config.model_validate(demo))
    assert forecast.knows(Config.model_validate(demo | {"runs": "elsewhere", "seed": 3}))
    assert not forecast.knows(Config.model_validate(demo | {"stage1": {"epochs": 3}}))
    assert not forecast.knows(Config.model_validate(presets.load("fashioniq")))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert not forecast.knows(Config.model_validate(demo))


def test_batches_are_timed_with_the_threads_that_were_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forecast, "BATCH", 2)
    before = torch.get_num_threads()
    assert forecast.demo_seconds() > forecast.FIXED_S
    assert torch.get_num_threads() == before
