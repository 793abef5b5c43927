"""Images that the cluster decodes: what is trained is the same, and mistakes are told as before."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from raycd.config import ComputeConfig, Config
from raycd.data.images import BrokenImage
from raycd.errors import ConfigError
from raycd.runtime import pipeline
from raycd.runtime.train.decoding import ClusterLoader, check_room
from raycd.train.triplets import TripletBatch, Work
from tests.runtime.finished import UNTRACKED, Finished


class Noise(Dataset[TripletBatch]):
    """A reader whose batches are drawn by the rows that they are asked for."""

    def __getitem__(self, work: Work) -> TripletBatch:
        generator = torch.Generator().manual_seed(int(work.rows[0]))
        pixels = torch.randint(0, 256, (2 * len(work.rows), 8, 8, 3), generator=generator)
        return TripletBatch(
            pixels.to(torch.uint8),
            torch.from_numpy(work.rows)[:, None].expand(-1, 4).contiguous(),
            torch.from_numpy(work.targets),
        )


@pytest.mark.usefixtures("ray_cluster")
def test_batches_come_in_their_order_as_the_worker_reads_them() -> None:
    rows = [np.arange(first, first + size) for first, size in ((0, 3), (3, 3), (6, 3), (9, 2))]
    work = [Work(own, own, own + 1) for own in rows]
    found = list(ClusterLoader(Noise(), ComputeConfig()).batches(work))
    assert len(found) == len(work)
    for batch, own in zip(found, work, strict=True):
        read = Noise()[own]
        for name in ("pixels", "tokens", "targets"):
            assert torch.equal(getattr(batch, name), getattr(read, name)), name


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_trained_on_images_that_the_cluster_decodes_is_the_same(
    copied: Finished, capfd: pytest.CaptureFixture[str], workers: int
) -> None:
    compute = {"train_workers": workers, "cpus_per_worker": 0.5}
    trained = []
    for where in ("worker", "cluster"):
        shutil.rmtree(copied.folder / "stage1")
        config = copied.config(stage1={"decode_on": where}, compute=compute, **UNTRACKED)
        outcome = pipeline.run(config, until="stage1")
        assert outcome.done == ["stage1"]
        record = pipeline.recorded(outcome.run, "stage1")
        trained.append((record["encoder"], [entry["loss"] for entry in record["history"]]))
    assert trained[0] == trained[1]
    shown = capfd.readouterr().err
    assert shown.count("stage 1: CPUs of the cluster decode the images\n") == 1
    assert "Traceback" not in shown


class Gone(Dataset[TripletBatch]):
    """A reader of a picture that is gone."""

    def __getitem__(self, work: Work) -> TripletBatch:
        raise BrokenImage("dress/a.jpg is gone", reason="missing")


@pytest.mark.usefixtures("ray_cluster")
def test_an_image_that_is_gone_is_told_by_its_name() -> None:
    row = np.zeros(1, np.int64)
    with pytest.raises(BrokenImage) as caught:
        list(ClusterLoader(Gone(), ComputeConfig()).batches([Work(row, row, row)]))
    assert str(caught.value) == "dress/a.jpg is gone"
    assert caught.value.reason == "missing"


@pytest.mark.usefixtures("ray_cluster")
def test_training_workers_that_leave_no_cpu_to_decode_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    compute = {"train_workers": 2, "cpus_per_worker": 1}
    config = Config.model_validate({"stage1": {"decode_on": "cluster"}, "compute": compute})
    with pytest.raises(ConfigError) as caught:
        check_room(config)
    assert str(caught.value) == (
        "stage1.decode_on cluster, and no CPU is left that decodes\n"
        "  got:      2 training workers of 1 CPUs, and 2 CPUs\n"
        "  expected: 1 more\n"
        "  to do:    lower compute.train_workers or compute.cpus_per_worker, or give "
        "--stage1.decode_on worker"
    )
    check_room(config.model_copy(update={"stage1": Config().stage1}))
    monkeypatch.setenv("RAY_ADDRESS", "ray.example.org:6379")  # that may grow
    check_room(config)
    assert "waits for a machine with a CPU that is free" in capsys.readouterr().err
