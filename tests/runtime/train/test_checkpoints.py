"""Checkpoints of a training, in a folder and in a bucket: what is kept and gone on from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from s3fs import S3FileSystem
from torch import nn

from raycd.runtime.train.checkpoints import FILE_OF_RAY, Checkpoints, in_words
from raycd.train.checkpoint import HISTORY, MID_EPOCH, OPTIMIZER, WEIGHTS, TrainingState
from raycd.train.mid_epoch import MidEpoch
from tests.full_disk import no_room

Make = Callable[[], Checkpoints]


@pytest.fixture(params=["folder", "bucket"])
def checkpoints(request: pytest.FixtureRequest, tmp_path: Path) -> Checkpoints:
    if request.param == "folder":
        return Checkpoints(str(tmp_path / "a store?" / "stage"))
    request.getfixturevalue("s3")
    return Checkpoints(f"s3://raycd/{tmp_path.name}/a store/stage")


def state(scores: list[float], batches: int = 0, weight: float = 0.0) -> TrainingState:
    """Return a state after epochs of these scores and some batches."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, weight)
    history = [{"epoch": epoch, "score": score} for epoch, score in enumerate(scores)]
    mid_epoch = MidEpoch.gathered([torch.zeros(())] * batches, 1.5) if batches else None
    return TrainingState.of(module, torch.optim.Adam(module.parameters()), history, mid_epoch)


def keep(checkpoints: Checkpoints, state: TrainingState) -> str:
    """Write a checkpoint as a training does."""
    name = checkpoints.write(state)
    checkpoints.prune(state)
    return name


def test_the_two_newest_and_the_best_epochs_are_kept_and_those_inside_of_epochs_confuse_nothing(
    checkpoints: Checkpoints,
) -> None:
    keep(checkpoints, state([], 40))
    scores = []
    for score in (0.1, 0.9, 0.3):
        scores.append(score)
        keep(checkpoints, state(scores, weight=score))
        for step in (40, 120):
            keep(checkpoints, state(scores, step))
    assert checkpoints.names() == [
        "epoch-0003-step-000120",
        "epoch-0003-step-000040",
        "epoch-0002",
    ]
    newest, name, damaged = checkpoints.newest()
    assert (name, in_words(name), damaged) == ("epoch-0003-step-000120", "epoch 4, step 120", [])
    assert newest is not None
    assert newest.mid_epoch is not None
    assert (newest.mid_epoch.batches, newest.mid_epoch.seconds) == (120, 1.5)
    scores.append(0.0)
    keep(checkpoints, state(scores))
    history, best, folder = checkpoints.finished()
    assert [entry["score"] for entry in history] == scores
    assert best == 1
    assert {file.name for file in folder.iterdir()} == {WEIGHTS, OPTIMIZER, HISTORY}
    assert TrainingState.read(folder).weights["weight"].item() == pytest.approx(0.9)


@pytest.mark.parametrize("cut", [WEIGHTS, OPTIMIZER, MID_EPOCH, HISTORY])
def test_one_that_was_cut_short_is_told_and_the_one_before_is_gone_on_from(
    cut: str, tmp_path: Path
) -> None:
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.write(state([0.5]))
    file = tmp_path / checkpoints.write(state([0.5], 30)) / cut
    file.write_bytes(file.read_bytes()[:-7])
    newest, name, damaged = checkpoints.newest()
    assert newest is not None
    assert name == "epoch-0001"
    assert len(damaged) == 1
    assert damaged[0].startswith("epoch-0001-step-000030 (")
    file.unlink()
    assert checkpoints.newest()[1] == "epoch-0001"
    checkpoints.write(state([0.5], 30))
    assert checkpoints.newest()[1:] == ("epoch-0001-step-000030", [])


def test_one_that_was_found_damaged_takes_no_place_of_the_two_newest(
    checkpoints: Checkpoints,
) -> None:
    for step in (0, 60, 120):
        name = keep(checkpoints, state([0.5], step))
    with checkpoints._fs.open(f"{checkpoints._path}/{name}/{WEIGHTS}", "wb") as file:
        file.write(b"cut")
    assert checkpoints.newest()[1] == "epoch-0001-step-000060"
    keep(checkpoints, state([0.5, 0.1], 40))
    assert checkpoints.names() == [
        "epoch-0002-step-000040",
        "epoch-0001-step-000060",
        "epoch-0001",
    ]
    checkpoints.write(state([0.5], 120))
    checkpoints.prune(state([0.5], 200))
    assert "epoch-0001-step-000120" in checkpoints.names(), "it was written anew"


def test_the_newest_is_the_furthest_however_many_digits_its_name_has(tmp_path: Path) -> None:
    checkpoints, scores = Checkpoints(str(tmp_path)), [0.0] * 9_998
    (tmp_path / "checkpoint_2026-01-01_00-00-00.123456").mkdir()
    (tmp_path / "checkpoint_2026-01-01_00-00-00.123456" / HISTORY).write_text("[]")
    for _ in range(3):
        scores.append(0.0)
        keep(checkpoints, state(scores))
    for step in ("999999", "1000000"):
        (tmp_path / "epoch-10001").rename(tmp_path / f"epoch-10001-step-{step}")
        keep(checkpoints, state(scores))
    assert checkpoints.names() == [
        "epoch-10001-step-1000000",
        "epoch-10001-step-999999",
        "epoch-10001",
        "epoch-10000",
        "checkpoint_2026-01-01_00-00-00.123456",
    ]
    assert in_words("epoch-10001-step-1000000") == "epoch 10002, step 1000000"
    assert checkpoints.read("epoch-10001").history[-1]["epoch"] == 10_000


def test_where_none_can_be_read_the_training_begins_anew(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path / "absent"))
    assert checkpoints.newest() == (None, "", [])
    file = tmp_path / "absent" / checkpoints.write(state([0.5])) / WEIGHTS
    file.write_bytes(b"")
    newest, name, damaged = checkpoints.newest()
    assert (newest, in_words(name), len(damaged)) == (None, "the beginning", 1)


def test_in_a_bucket_one_counts_only_with_its_history_which_comes_last_and_goes_first(
    s3: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, temporary = Checkpoints(f"s3://raycd/{tmp_path.name}/stage"), tmp_path / "t"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    store, order = S3FileSystem(use_listings_cache=False), []
    put = checkpoints._fs.put_file

    def noted(source: str, target: str) -> None:
        order.append(target.rpartition("/")[2])
        put(source, target)

    monkeypatch.setattr(checkpoints._fs, "put_file", noted)
    name = checkpoints.write(state([0.5]))
    assert order[-1] == HISTORY
    assert checkpoints.names() == [name]
    store.rm_file(f"raycd/{tmp_path.name}/stage/{name}/{HISTORY}")
    assert checkpoints.names() == []
    assert list(temporary.iterdir()) == [], "a copy stays on the disk"


def test_those_of_ray_train_which_an_earlier_version_kept_are_gone_on_from(tmp_path: Path) -> None:
    for number, scores in enumerate(([0.9], [0.9, 0.2])):
        state(scores).write(tmp_path / f"checkpoint_2026-01-01_00-00-0{number}.123456")
    (tmp_path / FILE_OF_RAY).write_text("{}")
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.forget_rays()
    assert not (tmp_path / FILE_OF_RAY).exists()
    newest, _, _ = checkpoints.newest()
    assert newest is not None
    assert len(newest.history) == 2
    checkpoints.write(state([0.9, 0.2, 0.1]))
    assert checkpoints.finished()[1] == 0, "the best epoch is one that the earlier version kept"


def test_what_a_killed_process_left_half_written_is_no_checkpoint_and_goes(tmp_path: Path) -> None:
    half = tmp_path / ".epoch-0001.123.writing"
    half.mkdir()
    (half / WEIGHTS).write_bytes(b"half")
    checkpoints = Checkpoints(str(tmp_path))
    assert checkpoints.names() == []
    checkpoints.write(state([0.5]))
    checkpoints.remove_halves()
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-0001"]


def test_one_that_was_put_aside_for_another_when_the_process_was_killed_comes_back(
    tmp_path: Path,
) -> None:
    checkpoints = Checkpoints(str(tmp_path))
    aside = ".epoch-0001.123.replaced"
    (tmp_path / checkpoints.write(state([0.5], weight=2.0))).rename(tmp_path / aside)
    (tmp_path / ".epoch-0001.123.writing").mkdir()
    checkpoints.remove_halves()
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-0001"]
    assert checkpoints.read("epoch-0001").weights["weight"].item() == 2.0
    (tmp_path / aside).mkdir()  # the kill came after the other had its name
    checkpoints.remove_halves()
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-0001"]


def test_what_is_beside_them_is_read_back_or_absent(checkpoints: Checkpoints) -> None:
    assert checkpoints.read_json("failures.json") is None
    checkpoints.write_json("failures.json", [{"what": "x"}])
    assert checkpoints.read_json("failures.json") == [{"what": "x"}]
    assert checkpoints.names() == []
    assert json.dumps(checkpoints.read_json("failures.json")) == '[{"what": "x"}]'


def test_a_full_disk_leaves_the_earlier_record(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.write_json("failures.json", [{"what": "x"}])
    with no_room(), pytest.raises(OSError, match="File too large"):
        checkpoints.write_json("failures.json", [{"what": "x" * 200}])
    assert checkpoints.read_json("failures.json") == [{"what": "x"}]
    assert [file.name for file in tmp_path.iterdir()] == ["failures.json"]


def test_one_that_is_removed_by_halves_counts_as_absent_and_stops_nothing(
    checkpoints: Checkpoints,
) -> None:
    scores: list[float] = []
    for score in (0.9, 0.1, 0.2, 0.3):
        scores.append(score)
        checkpoints.write(state(scores))
    checkpoints._fs.rm_file(f"{checkpoints._path}/epoch-0002/{HISTORY}")
    assert checkpoints.names() == ["epoch-0004", "epoch-0003", "epoch-0001"]
    newest, name, damaged = checkpoints.newest()
    assert newest is not None
    assert (name, damaged) == ("epoch-0004", [])
    history, best, _ = checkpoints.finished()
    assert [entry["score"] for entry in history] == scores
    assert best == 0
    keep(checkpoints, state(scores))
    assert checkpoints.names() == ["epoch-0004", "epoch-0003", "epoch-0001"]


def test_one_whose_files_stay_where_it_is_removed_has_no_name_any_more_and_goes_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, scores = Checkpoints(str(tmp_path)), [0.9, 0.1, 0.2, 0.3]
    for number in range(4):
        checkpoints.write(state(scores[: number + 1]))
    with monkeypatch.context() as patch:  # a kill, or a file that is open on NFS
        patch.setattr("shutil.rmtree", lambda *_, **__: None)
        checkpoints.prune(state(scores))
    left = [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert [name.partition(".writing")[1] for name in left] == [".writing"]
    assert {path.name for path in tmp_path.iterdir()} - set(left) == set(checkpoints.names())
    assert checkpoints.finished()[1] == 0
    checkpoints.remove_halves()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "epoch-0001",
        "epoch-0003",
        "epoch-0004",
    ]
