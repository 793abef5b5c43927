"""The naive trial of `jobs/benchmark.py sweep` does what a trial of the sweep does, without its
tables.
"""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest

from jobs.benchmarks import sweep
from raycd.config import Config
from raycd.run import Run
from raycd.runtime import pipeline


@pytest.mark.parametrize(("asked", "epochs"), [(4, 4), (0, 30)])
def test_the_naive_trial_trains_as_long_and_as_precisely_as_a_trial(
    asked: int, epochs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune: dict[str, Any] = {"epochs": asked, "precision": "bf16"}
    settings = {"name": "tiny", "runs": str(tmp_path), "stage2": {"epochs": 30}, "tune": tune}
    run, scratch = Run(str(tmp_path / "tiny"), {}), tmp_path / "scratch"
    (scratch / "tiny").mkdir(parents=True)
    seen: list[Config] = []

    def trained(config: Config, *, until: str) -> Any:
        seen.append(config)
        with run.writing(until, "fingerprint") as writing:
            writing.record["history"] = [{}] * config.stage2.epochs
        return types.SimpleNamespace(run=run, done=[until])

    monkeypatch.setattr(pipeline, "run", trained)
    seconds, done = sweep._naive(Config.model_validate(settings), run, scratch)
    assert (list(seconds), done) == (["stage2"], epochs)
    [config] = seen
    assert (config.stage2.epochs, config.stage2.precision, config.runs) == (
        epochs,
        "bf16",
        str(scratch),
    )
