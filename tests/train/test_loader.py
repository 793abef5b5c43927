"""The processes that decode: how many there are, and what they tell of images they cannot read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raycd.data.images import BrokenImage
from raycd.model import threads
from raycd.train import triplets
from raycd.train.triplets import Loader, Work, loader_workers


class Gone:
    """A reader of a picture that is gone."""

    def __getitem__(self, work: Work) -> None:
        raise BrokenImage("dress/a.jpg is gone", reason="missing")


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_image_that_is_gone_is_told_by_its_name_whoever_decodes(workers: int) -> None:
    reader: Any = Gone()
    row = np.zeros(1, np.int64)
    with pytest.raises(BrokenImage) as caught:
        list(Loader(reader, workers, pin=False).batches([Work(row, row, row)]))
    assert str(caught.value) == "dress/a.jpg is gone"
    assert caught.value.reason == "missing"


def test_processes_decode_beside_a_gpu_as_many_as_there_are_cpus(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cpu, gpu, limit = torch.device("cpu"), torch.device("cuda"), tmp_path / "cpu.max"
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setattr(threads, "CGROUP", str(limit))
    assert [loader_workers(wanted, cpu) for wanted in ("auto", 3)] == [0, 3]
    assert [loader_workers(wanted, gpu) for wanted in ("auto", 0)] == [15, 0]
    for text, wanted in (("max 100000", 15), ("450000 100000", 3), ("50000 100000", 1)):
        limit.write_text(f"{text}\n")  # of a container
        assert loader_workers("auto", gpu) == wanted
    limit.unlink()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert loader_workers("auto", gpu) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert loader_workers("auto", gpu) == 1


def test_no_more_processes_decode_than_shared_memory_has_room_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setattr(threads, "CGROUP", "/nowhere")
    monkeypatch.setattr(triplets, "_shared_bytes", lambda: 64 * 2**20)  # Docker's
    gpu, batch = torch.device("cuda"), 2 * 64 * 3 * 288 * 288
    assert loader_workers("auto", gpu, batch) == 0
    assert "--shm-size" in capsys.readouterr().err
    assert loader_workers("auto", gpu, batch // 10) == 7
    assert loader_workers("auto", gpu, batch // 1000) == 15
