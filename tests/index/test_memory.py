"""What an index keeps in memory, and what its kind is where that has a bound."""

from __future__ import annotations

import errno
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from raycd.config import IndexConfig
from raycd.errors import ConfigError, WeightsError
from raycd.index import Index
from raycd.index.choice import KINDS, MAPPED, check, kind_for, resident_mib
from raycd.index.half import room

DIM = 64


def drawn(count: int, seed: int = 0, dim: int = DIM) -> NDArray[np.float32]:
    """Draw features of any length, in 20 groups."""
    centres = np.random.default_rng(0).normal(size=(20, dim))
    noise = np.random.default_rng([1, seed]).normal(size=(count, dim))
    return (3 * (centres[np.arange(count) % 20] + 0.4 * noise)).astype(np.float32)


@pytest.mark.parametrize(
    ("images", "memory_mib", "kind"),
    [
        (20_000, 0, "flat"),
        (20_001, 0, "ivf"),
        (20_000, 60, "flat"),
        (20_000, 20, "half"),
        (1_000_000, 4000, "ivf"),
        (1_000_000, 900, "sq8"),
        (1_000_000, 200, "rabitq"),
        (1_000_000, 1, "rabitq"),
    ],
)
def test_the_best_kind_is_chosen_whose_memory_is_there(
    images: int, memory_mib: int, kind: str
) -> None:
    assert kind_for(IndexConfig(memory_mib=memory_mib), images, 640) == kind


def test_a_gallery_around_the_bound_keeps_its_kind() -> None:
    needed = resident_mib("ivf", IndexConfig(), 100_000, 640)
    settings = IndexConfig(memory_mib=int(needed) + 1)
    kinds = [(now, kind_for(settings, 100_000, 640, now)) for now in (None, "ivf", "sq8", "flat")]
    assert kinds == [(None, "ivf"), ("ivf", "ivf"), ("sq8", "sq8"), ("flat", "ivf")]
    assert kind_for(settings, 101_000, 640, "ivf") == "sq8"
    assert kind_for(settings, 90_000, 640, "sq8") == "ivf"


def test_a_kind_that_is_asked_for_is_taken_whatever_the_bound() -> None:
    assert kind_for(IndexConfig(kind="hnsw", memory_mib=1), 100, 640) == "hnsw"


@given(images=st.integers(1, 3_000_000), memory_mib=st.integers(1, 5000))
def test_a_kind_that_is_chosen_fits_or_the_bundle_is_refused(images: int, memory_mib: int) -> None:
    settings = IndexConfig(memory_mib=memory_mib)
    kind = kind_for(settings, images, 512)
    if resident_mib(kind, settings, images, 512) > memory_mib:
        with pytest.raises(ConfigError, match=r"index\.memory_mib"):
            check(settings, images, 512)
    else:
        check(settings, images, 512)


def test_the_bound_that_a_refusal_names_is_enough() -> None:
    with pytest.raises(ConfigError) as refused:
        check(IndexConfig(memory_mib=10), 1_000_000, 640)
    enough = int(str(refused.value).split("at least ")[1].split(" MiB")[0])
    check(IndexConfig(memory_mib=enough), 1_000_000, 640)


@pytest.mark.parametrize("kind", KINDS)
def test_the_memory_that_is_told_is_that_of_the_file_without_what_is_mapped(
    kind: str, tmp_path: Path
) -> None:
    settings = IndexConfig.model_validate({"kind": kind, "sample": 50, "hnsw_m": 8})
    features_GD = drawn(5000, dim=640)
    index = Index.build(features_GD, settings)
    index.save(tmp_path)
    written = (tmp_path / "index.faiss").stat().st_size / 2**20
    mapped = features_GD.size * 2 / 2**20 if kind in MAPPED else 0
    told = resident_mib(index.kind, settings, len(features_GD), 640)
    turn = 640 * 640 * 4 / 2**20 if kind == "rabitq" else 0  # the rotation
    assert told == pytest.approx(written - mapped - turn, rel=0.05, abs=0.2)


@pytest.mark.parametrize("kind", MAPPED)
def test_features_come_from_a_file_in_blocks_and_never_lie_in_memory_as_a_whole(
    kind: str, tmp_path: Path
) -> None:
    settings = IndexConfig.model_validate(
        {"kind": kind, "sample": 100, "ivf_lists": 16, "recall": 0.9}
    )
    features_GD = room((80_000, DIM), np.float32)
    for start in range(0, len(features_GD), 8000):
        features_GD[start : start + 8000] = drawn(8000, start)
    expected = Index.build(np.array(features_GD), settings, threads=1)
    tracemalloc.start()
    try:
        index = Index.build(features_GD, settings, threads=1)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < features_GD.nbytes
    query_BD = index.vectors(np.arange(20))
    for mine, other in zip(index.search(query_BD, 10), expected.search(query_BD, 10), strict=True):
        np.testing.assert_array_equal(mine, other)
    loaded = Index.load(tmp_path, index.save(tmp_path))
    np.testing.assert_array_equal(loaded.search(query_BD, 10)[1], index.search(query_BD, 10)[1])


def test_rabitq_compares_as_many_again_as_the_recall_takes() -> None:
    features_GD = drawn(4000)
    low, high = (
        Index.build(features_GD, IndexConfig(kind="rabitq", recall=recall, sample=200))
        for recall in (0.8, 0.99)
    )
    assert high.recall >= 0.989
    assert low._structure.index.k_factor < high._structure.index.k_factor


@pytest.mark.parametrize("kind", MAPPED)
def test_an_index_of_an_index_of_float16_has_the_same_features(kind: str) -> None:
    settings, features_GD = IndexConfig.model_validate({"kind": kind, "sample": 50}), drawn(2000)
    every = np.arange(len(features_GD))

    def whole(index: Index) -> NDArray[np.float32]:
        return index.vectors(every) * index.lengths(every)[:, None]

    again = first = Index.build(features_GD, settings)
    for _ in range(3):
        again = Index.build(whole(again), settings, like=again)
    np.testing.assert_allclose(whole(again), whole(first), rtol=1e-6)


def test_a_disk_without_room_is_told_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*given: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(WeightsError, match="No space left on device"):
        Index.build(drawn(100), IndexConfig(kind="half"))
