"""Mining on Ray Data gives what the core gives, at any number of blocks and workers."""

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from raycd import mine
from raycd.config import ComputeConfig, MineConfig
from raycd.runtime import mining

N, T, D = 300, 80, 16


@pytest.fixture(scope="module")
def features() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Images (N, D) in tight clusters with duplicates, texts (T, D)."""
    rng = np.random.default_rng(0)
    image_ND = rng.normal(size=(20, D))[rng.integers(0, 20, N)] + 0.05 * rng.integers(0, 3, (N, D))
    return image_ND.astype(np.float32), rng.normal(size=(T, D)).astype(np.float32)


@pytest.fixture(scope="module")
def triplets() -> mine.TripletRows:
    rng = np.random.default_rng(1)
    return mine.TripletRows(
        image_ids=pa.array([f"image-{i}" for i in range(N)]),
        triplet_ids=pa.array([f"triplet-{i}" for i in range(T)]),
        categories=pa.array(["dress" if i % 2 else "shirt" for i in range(T)]),
        reference_T=rng.integers(0, N, T).astype(np.int32),
        target_T=rng.integers(0, N, T).astype(np.int32),
    )


def pools_of(kind: str, triplets: mine.TripletRows) -> list[mine.Pool]:
    """Two galleries that overlap."""
    names = {"dress": range(0, 200), "shirt": range(100, N)}
    rows = [{"category": c, "split": "train", "image_id": f"image-{i}"} for c, images in names.items() for i in images]
    return mine.make_pools(kind, pa.Table.from_pylist(rows), triplets)


@pytest.mark.parametrize(
    ("pool", "batch_size", "workers", "cpus"),
    [("all", 1024, 1, 0.5), ("all", 13, 2, 0.5), ("category", 40, 2, 1.0), ("category", 7, 8, 0.5)],
)
def test_neighbours_equal_the_core(
    ray_cluster: None,
    features: tuple[NDArray[np.float32], NDArray[np.float32]],
    triplets: mine.TripletRows,
    pool: str,
    batch_size: int,
    workers: int,
    cpus: float,
) -> None:
    """Eight workers of half a CPU do not fit into two CPUs: as many as fit do the work."""
    settings = MineConfig.model_validate({"neighbours": 8, "floor": 0.5, "batch_size": batch_size, "pool": pool})
    pools = pools_of(pool, triplets)
    compute = ComputeConfig(mine_workers=workers, cpus_per_worker=cpus)
    found = mining.find_neighbours(features[0], pools, settings, compute)
    expected = mine.find_neighbours(features[0], pools, settings)
    assert found.equals(expected, check_metadata=True)
    assert found["truncated"].to_pylist().count(True) > 0


@pytest.mark.parametrize(("block", "workers"), [(1 << 15, 1), (100, 2)])
def test_candidates_equal_the_core(
    ray_cluster: None,
    features: tuple[NDArray[np.float32], NDArray[np.float32]],
    triplets: mine.TripletRows,
    block: int,
    workers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mining, "SCORE_BLOCK", block)
    found = mine.find_neighbours(features[0], pools_of("category", triplets), MineConfig(neighbours=8, floor=0.5))
    table = mining.make_candidates(
        triplets, found, *features, encoder="abc", compute=ComputeConfig(mine_workers=workers)
    )
    expected = mine.make_candidates(triplets, found, *features, encoder="abc")
    assert len(expected) > 500
    assert table.equals(expected, check_metadata=True)


def test_nothing_to_mine_is_an_empty_table(ray_cluster: None, features: tuple[NDArray[np.float32], ...]) -> None:
    rows = np.zeros(0, np.int32)
    nothing = mine.TripletRows(pa.array(["image-0"]), pa.array([], pa.string()), pa.array([], pa.string()), rows, rows)
    found = mining.find_neighbours(features[0], [mine.Pool("", rows, rows)], MineConfig(), ComputeConfig())
    table = mining.make_candidates(nothing, found, features[0], features[1][:0], encoder="abc", compute=ComputeConfig())
    pseudo, counts = mine.filter_candidates(table, eps_low=0.9, eps_high=0.995, s_max=4, alpha=0.6)
    assert (len(found), len(table), len(pseudo), counts["candidates"]) == (0, 0, 0, 0)
