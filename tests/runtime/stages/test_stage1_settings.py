"""Stage 1 on Ray Train with adapters, chunks, two workers that each have a process that decodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raycd.config import Config
from raycd.model.encoder import load_saved
from raycd.runtime import pipeline


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_adapters_trained_in_chunks_by_two_workers_are_merged_into_the_encoder_of_the_run(
    tiny_settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage1 = {"finetune": "lora", "lora_rank": 2, "chunk": 7, "lr": 1e-2, "clip_norm": 1.0}
    stage1 |= {"loader_workers": 1}
    settings = {
        **tiny_settings,
        "runs": str(tmp_path),
        "stage1": {**tiny_settings["stage1"], **stage1},
        "compute": {**tiny_settings["compute"], "train_workers": 2},
        "stage2": {**tiny_settings["stage2"], "hard_negatives": 2},
        "tracking": {"enabled": False},
    }
    run = pipeline.run(Config.model_validate(settings), until="stage2").run
    record, other = (pipeline.recorded(run, stage) for stage in ("stage1", "stage2"))
    before, tuned = (load_saved(run.local(name) / "encoder") for name in ("encoder", "stage1"))
    assert tuned.clip.state_dict().keys() == before.clip.state_dict().keys()
    assert tuned.fingerprint() == record["encoder"] != before.fingerprint()
    counts = record["parameters"]
    assert 0 < counts["trained"] < 0.1 * counts["frozen"]
    assert f"{counts['trained']:,} parameters train" in capsys.readouterr().err
    for history in (record["history"], other["history"]):
        for entry in history:
            assert 0 < entry["gradient_norm"] <= entry["gradient_norm_max"]
