"""Decoded pixels that the processes of a machine share."""

from __future__ import annotations

import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raycd.config import DataConfig
from raycd.data import pixels
from raycd.data.pixels import PixelCache, available
from raycd.data.preprocess import Preprocess
from raycd.data.shared_pixels import SharedPixels

PREPROCESS = Preprocess((8, 8), (0.0,) * 3, (1.0,) * 3, target_pad=1.25)
SHAPE = (2, 3, 3)


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, str]:
    rng = np.random.default_rng(0)
    found = {name: str(tmp_path / f"{name}.png") for name in ("a", "b", "c")}
    for path in found.values():
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(path)
    return found


def cache(paths: dict[str, str], limit_mib: int | str, **first: object) -> PixelCache:
    return PixelCache(paths, PREPROCESS, DataConfig(), limit_mib, **first)  # type: ignore[arg-type]  # given by name


def fill(copy: bytes) -> None:
    pickle.loads(copy)("ab")


def test_what_another_process_decoded_is_not_decoded_again(paths: dict[str, str]) -> None:
    own = cache(paths, "auto")
    expected = cache(paths, 0)("ab")
    with ProcessPoolExecutor(1, get_context("forkserver")) as pool:
        pool.submit(fill, pickle.dumps(own)).result()
    for path in paths.values():
        Path(path).unlink()
    assert torch.equal(own("ab"), expected)
    with pytest.raises(Exception, match=r"c\.png"):
        own("c")


def test_those_that_come_first_are_kept_where_not_all_can_be(
    paths: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixels, "available", lambda: 2 * 2 * 8 * 8 * 3)
    own = cache(paths, "auto", first=["c", "elsewhere", "b"])
    expected = own("abc")
    for path in paths.values():
        Path(path).unlink()
    assert torch.equal(own("bc"), expected[1:])
    with pytest.raises(Exception, match=r"a\.png"):
        own("a")


def test_a_row_that_is_not_whole_is_none() -> None:
    rows, full = SharedPixels(2, SHAPE), torch.full(SHAPE, 7, dtype=torch.uint8)
    rows.put(1, full)
    assert rows.get(0) is None
    found = rows.get(1)
    assert found is not None
    assert torch.equal(found, full)
    other = pickle.loads(pickle.dumps(rows))
    other._rows["pixels"][1, 0] = 8  # as a process that was killed may leave it
    assert rows.get(1) is None


def test_a_file_that_happens_to_be_in_that_place_of_another_container_is_left_alone(
    tmp_path: Path,
) -> None:
    own, strange = SharedPixels(2, SHAPE), tmp_path / "log"
    strange.write_text("a line\n")
    with strange.open("r+") as file:
        own.move(f"/proc/self/fd/{file.fileno()}", "raycd-pixels-of-another")
    own.put(1, torch.full(SHAPE, 7, dtype=torch.uint8))
    assert strange.read_text() == "a line\n"
    assert own.get(1) is not None


def test_a_worker_moves_to_the_rows_of_another_where_it_can_reach_them() -> None:
    rows, other = SharedPixels(2, SHAPE), SharedPixels(3, SHAPE)
    rows.put(1, torch.full(SHAPE, 7, dtype=torch.uint8))
    before = other.path
    other.move("/proc/1/fd/of-nobody", rows.name)
    assert other.path == before
    assert other.get(1) is None
    other.move(rows.path, rows.name)
    assert other.get(1) is not None
    other.put(2, torch.full(SHAPE, 8, dtype=torch.uint8))  # it has more of them
    assert rows.get(1) is not None


@pytest.mark.parametrize(("limit", "expected"), [("1000", 500), ("400", 0), ("max", None)])
def test_a_containers_limit_counts_but_for_files_that_the_kernel_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, expected: int | None
) -> None:
    monkeypatch.setattr(pixels, "CGROUP", f"{tmp_path}/memory.")
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text("600\n")
    (tmp_path / "memory.stat").write_text("anon 400\ninactive_file 100\n")  # read, and kept
    if expected is None:
        assert available() > 1000
    else:
        assert available() == expected
