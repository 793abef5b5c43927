"""Steps of a stage as tasks: the driver reads nothing of what they read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest
import torch

from raycd.config import Config
from raycd.errors import DataError, RunError
from raycd.features.stored import Stored
from raycd.run import Run
from raycd.runtime import pipeline
from raycd.runtime.stages import tasks
from raycd.runtime.stages.context import IMAGES, Context, own_device
from tests.runtime.finished import UNTRACKED, Finished

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_filter_evaluation_bundle_and_report_read_no_features_and_no_candidates_in_the_driver(
    copied: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("the driver reads features")

    read = pq.read_table

    def read_others(source: Any, **options: Any) -> Any:
        assert "candidates" not in str(source), "the driver reads candidates"
        return read(source, **options)

    before = copied.metrics()["variants"]
    for name in ("features", "rows"):
        monkeypatch.setattr(Stored, name, refused)
    monkeypatch.setattr(pq, "read_table", read_others)
    changes = {"mine": {"alpha": 0.1}, "stage2": {"head": "sum"}}  # that head is not trained
    outcome = pipeline.run(copied.config(**changes, **UNTRACKED))
    assert outcome.done == ["filter", "stage2", "evaluate", "bundle"]
    assert outcome.metrics is not None
    for name in ("zero_shot", "fine_tuned"):
        assert outcome.metrics["variants"][name] == before[name]
    assert "recall@10" in (copied.folder / "report.html").read_text()


def test_a_task_gets_the_run_and_works_in_a_process_of_its_own(finished: Finished) -> None:
    def count(context: Context, factor: int, more: int) -> tuple[int, int]:
        return os.getpid(), len(context.stored("embed", IMAGES).keys()) * factor + more

    process, found = tasks.run(count, context_of(finished), 2, 1)
    assert process != os.getpid()
    assert found == 2 * (3 * 60 - 2) + 1  # two pictures cannot be read


def test_a_task_computes_on_no_gpu_that_is_not_its_own(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    def device(context: Context) -> str:
        torch.cuda.is_available = lambda: True  # Ray hides no card of the machine from its workers
        try:
            return own_device(context.config)
        finally:
            torch.cuda.is_available = asked

    asked = torch.cuda.is_available
    assert tasks.run(device, context_of(finished)) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert own_device(Config.model_validate({"compute": {"device": "auto"}})) == "cuda"


def test_what_a_task_raises_is_raised(finished: Finished) -> None:
    def fail(context: Context) -> None:
        raise DataError("no such thing", got=context.config.name)

    with pytest.raises(DataError, match=r"no such thing\n.*tiny"):
        tasks.run(fail, context_of(finished))


def test_a_run_that_a_worker_does_not_reach_is_told(finished: Finished, tmp_path: Path) -> None:
    run = Run(f"memory://{tmp_path.name}/tiny", {"format": "x"})  # it is this process's memory
    with pytest.raises(RunError, match=r"a worker does not find the run memory://"):
        tasks.run(lambda context: None, Context(finished.config(), run))


@pytest.mark.parametrize("where", ["folder", "store"])
def test_what_is_written_to_a_uri_lies_there(where: str, tmp_path: Path) -> None:
    uri = str(tmp_path) if where == "folder" else f"memory://{tmp_path.name}/written"
    with tasks.written_to(f"{uri}/bundle") as folder:
        (folder / "maps").mkdir()
        (folder / "maps" / "a.bin").write_bytes(b"a")
        (folder / "b.bin").write_bytes(b"b")
    for name, content in {"maps/a.bin": b"a", "b.bin": b"b"}.items():
        with fsspec.open(f"{uri}/bundle/{name}", "rb") as file:
            assert file.read() == content


def context_of(finished: Finished) -> Context:
    config = finished.config()
    return Context(config, pipeline.run_folder(config))
