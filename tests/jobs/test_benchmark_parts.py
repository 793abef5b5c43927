"""Benchmarks in parts, of which one may fail."""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.benchmarks import gpu
from jobs.benchmarks.measuring import in_parts
from jobs.benchmarks.train import shortened
from raycd.config import Config


def test_a_part_that_fails_leaves_what_is_known_of_it_and_of_the_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def rows_of(part: str) -> Iterator[dict[str, float]]:
        yield {f"{part}: images/s": 3.0}
        if part == "mining":
            raise ValueError("no room\non the card")

    rows = in_parts(["mining", "stage1"], rows_of)
    assert {name: value for name, value in rows.items() if not name.endswith(": s")} == {
        "mining: images/s": 3.0,
        "mining: failed": "ValueError: no room on the card",
        "stage1: images/s": 3.0,
    }
    assert "mining: images/s: 3.0\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("measured", "epochs"), [(["stage1", "stage2"], (2, 12)), (["stage2"], (0, 12))]
)
def test_only_the_stage_that_is_not_measured_has_fewer_epochs_of_its_own(
    measured: list[str], epochs: tuple[int, int], tmp_path: Path
) -> None:
    given = Config.model_validate({"stage1": {"epochs": 0}, "stage2": {"epochs": 1}})
    short = shortened(given, measured, tmp_path)
    assert (short.stage1.epochs, short.stage2.epochs) == epochs


@pytest.mark.slow
def test_all_that_is_measured_on_a_gpu_runs_on_cpus(
    tiny_configs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "TRAIN_IMAGES", 1000)
    sizes = {"bilinear_dim": 4, "projection_dim": 8, "hidden_dim": 8}
    config = Config.model_validate(
        {
            "compute": {"device": "cpu"},
            "encoder": {"name": "raycd-tiny", "pretrained": "", "configs": tiny_configs},
            "embed": {"batch_size": 4},
            "stage1": {"batch_size": 4},
            "stage2": {"batch_size": 8, **sizes},
        }
    )
    rows = gpu.measure(config, Namespace(only="", images=None))
    assert [name for name in rows if name.endswith("failed")] == []
    assert rows["stage 1, bf16, batch 8, cached gradients: triplets/s"] > 0
    assert rows["search, 1000 x 16, cpu, 32 at once: p50, ms"] > 0
    assert rows["mining, 1000 x 16, top 64, cpu: images/s"] > 0
