"""Mining in tasks of Ray gives the results of the core, with any number of blocks and workers."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from numpy.typing import NDArray

from raycd import features as features_io
from raycd import mine
from raycd.config import ComputeConfig, MineConfig
from raycd.errors import DataError
from raycd.features import shards
from raycd.features.stored import Stored
from raycd.progress import Bar
from raycd.runtime import mining
from tests.runtime.mined import clustered, small_shards

N, T, D = 300, 80, 16
InFiles = Callable[[NDArray[np.float32]], Stored]


@pytest.fixture(scope="module")
def features() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return images (N, D) in tight clusters with duplicates, and texts (T, D)."""
    rng = np.random.default_rng(0)
    image_ND = rng.normal(size=(20, D))[rng.integers(0, 20, N)] + 0.05 * rng.integers(0, 3, (N, D))
    return image_ND.astype(np.float32), rng.normal(size=(T, D)).astype(np.float32)


@pytest.fixture
def in_files(tmp_path: Path) -> InFiles:
    """Return what writes features in seven shards, a row without one before every tenth."""

    def write(image_ND: NDArray[np.float32]) -> Stored:
        keys = [str(row) for row in range(len(image_ND))]
        for row in range(0, len(keys) + len(keys) // 10, 11):
            keys.insert(row, f"lost-{row}")
        status = ["missing" if key.startswith("lost") else "ok" for key in keys]
        values = np.zeros((len(keys), image_ND.shape[1]), np.float32)
        values[[one == "ok" for one in status]] = image_ND
        table, folder = features_io.to_table(keys, status, values), str(tmp_path / "in_files")
        size = -(-len(keys) // 7)
        shards.begin(folder, shards.ShardPlan(7, len(keys), size))
        for number in range(7):
            shards.write(folder, number, table.slice(number * size, size))
        return Stored.open(folder)

    return write


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
    """Return two galleries that overlap."""
    names = {"dress": range(0, 200), "shirt": range(100, N)}
    rows = [
        {"category": c, "split": "train", "image_id": f"image-{i}"}
        for c, images in names.items()
        for i in images
    ]
    return mine.make_pools(kind, pa.Table.from_pylist(rows), triplets)


@pytest.mark.parametrize(
    ("pool", "batch_size", "workers", "cpus"),
    [
        ("all", 1024, 1, 0.5),
        ("all", 13, 2, 0.5),
        ("category", 40, 2, 1.0),
        pytest.param("category", 7, 8, 0.5, marks=pytest.mark.slow),
    ],
)
def test_neighbours_equal_the_core(
    ray_cluster: None,
    in_files: InFiles,
    features: tuple[NDArray[np.float32], NDArray[np.float32]],
    triplets: mine.TripletRows,
    pool: str,
    batch_size: int,
    workers: int,
    cpus: float,
) -> None:
    """Eight workers of half a CPU do not fit into two CPUs: as many as fit do the work."""
    settings = MineConfig.model_validate(
        {"neighbours": 8, "floor": 0.5, "batch_size": batch_size, "pool": pool}
    )
    pools = pools_of(pool, triplets)
    compute = ComputeConfig(mine_workers=workers, cpus_per_worker=cpus)
    found = mining.find_neighbours(in_files(features[0]), pools, settings, compute)
    expected = mine.find_neighbours(features[0], pools, settings)
    assert found.equals(expected, check_metadata=True)
    assert found["truncated"].to_pylist().count(True) > 0


@pytest.mark.parametrize(("block", "workers"), [(1 << 15, 1), (100, 2)])
def test_candidates_equal_the_core(
    ray_cluster: None,
    in_files: InFiles,
    features: tuple[NDArray[np.float32], NDArray[np.float32]],
    triplets: mine.TripletRows,
    block: int,
    workers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mining, "SCORE_BLOCK", block)
    found = mine.find_neighbours(
        features[0], pools_of("category", triplets), MineConfig(neighbours=8, floor=0.5)
    )
    score = partial(
        mining.matching_scores,
        *(in_files(features[0]), features[1]),
        compute=ComputeConfig(mine_workers=workers),
    )
    table = mine.make_candidates(triplets, found, score, encoder="abc")
    by_core = partial(mine.matching_scores, *features)
    expected = mine.make_candidates(triplets, found, by_core, encoder="abc")
    assert len(expected) > 500
    assert table.equals(expected, check_metadata=True)


def test_nothing_to_mine_is_an_empty_table(
    ray_cluster: None, features: tuple[NDArray[np.float32], ...], in_files: InFiles
) -> None:
    rows = np.zeros(0, np.int32)
    nothing = mine.TripletRows(
        pa.array(["image-0"]), pa.array([], pa.string()), pa.array([], pa.string()), rows, rows
    )
    found = mining.find_neighbours(
        in_files(features[0]), [mine.Pool("", rows, rows)], MineConfig(), ComputeConfig()
    )
    score = partial(
        mining.matching_scores, in_files(features[0]), features[1][:0], compute=ComputeConfig()
    )
    table = mine.make_candidates(nothing, found, score, encoder="abc")
    pseudo, counts = mine.filter_candidates(table, eps_low=0.9, eps_high=0.995, s_max=4, alpha=0.6)
    assert (len(found), len(table), len(pseudo), counts["candidates"]) == (0, 0, 0, 0)


@pytest.fixture(scope="module")
def wide() -> NDArray[np.float32]:
    return clustered()


def halves() -> list[mine.Pool]:
    """Return two pools of three quarters of the images, with queries in all of their shards."""
    parts = [np.arange(750), np.arange(250, 1000)]
    return [
        mine.Pool(f"{n}", rows.astype(np.int32), rows[::3].astype(np.int32))
        for n, rows in enumerate(parts)
    ]


@pytest.mark.parametrize(
    ("index", "batch_size", "workers", "queries"),
    [
        ("flat", 1024, 1, 4096),
        ("flat", 7, 2, 12),  # tasks of a dozen queries: lists come back in any order
        pytest.param("hnsw", 64, 2, 64, marks=pytest.mark.slow),
        pytest.param("ivf", 64, 2, 64, marks=pytest.mark.slow),
    ],
)
def test_neighbours_in_several_shards_equal_the_core(
    ray_cluster: None,
    in_files: InFiles,
    wide: NDArray[np.float32],
    index: str,
    batch_size: int,
    workers: int,
    queries: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mining, "QUERIES", {"cpu": queries})
    settings = small_shards(index=index, batch_size=batch_size, hnsw_m=4, hnsw_ef=8, ivf_probes=2)
    assert len(mine.make_shards(halves(), 600, settings)) >= 4
    compute = ComputeConfig(mine_workers=workers, cpus_per_worker=0.5)
    found = mining.find_neighbours(in_files(wide), halves(), settings, compute)
    assert found.equals(mine.find_neighbours(wide, halves(), settings), check_metadata=True)
    if index == "flat":
        whole = mine.find_neighbours(wide, halves(), small_shards(worker_mib=64))
        assert found.equals(whole, check_metadata=True)


def test_features_in_files_are_read_by_the_workers_alone(
    ray_cluster: None,
    wide: NDArray[np.float32],
    in_files: InFiles,
    triplets: mine.TripletRows,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored = in_files(wide)
    expected = mine.find_neighbours(wide, halves(), small_shards())
    text_TD = np.ones((T, 600), np.float32)
    found, by_core = expected_of(triplets, wide), partial(mine.matching_scores, wide, text_TD)
    replaced = mine.make_candidates(triplets, found, by_core, encoder="")
    _ = stored.starts, stored.dim
    monkeypatch.setattr(pq, "ParquetFile", None)  # of this process, not of the workers
    with pytest.raises(TypeError):
        stored.features()
    compute = ComputeConfig(mine_workers=2, cpus_per_worker=0.5)
    assert mining.find_neighbours(stored, halves(), small_shards(), compute).equals(
        expected, check_metadata=True
    )
    score = partial(mining.matching_scores, stored, text_TD, compute=compute)
    table = mine.make_candidates(triplets, found, score, encoder="")
    assert table.equals(replaced, check_metadata=True)


def expected_of(triplets: mine.TripletRows, image_ND: NDArray[np.float32]) -> pa.Table:
    return mine.find_neighbours(image_ND, pools_of("all", triplets), small_shards())


@pytest.mark.parametrize(("sample", "expected"), [(100, 100), (10_000, 500)])
def test_measured_recall_is_that_of_the_sample(
    ray_cluster: None, wide: NDArray[np.float32], in_files: InFiles, sample: int, expected: int
) -> None:
    settings = small_shards(
        index="ivf", worker_mib=3, ivf_lists=8, ivf_probes=1, recall_sample=sample
    )
    compute = ComputeConfig(mine_workers=1)
    found = mine.find_neighbours(wide, halves(), settings)
    search = partial(mining.find_neighbours, in_files(wide), compute=compute)
    record = mine.searched(found, halves(), 600, settings, search, seed=3)
    assert record["sample"] == expected
    exact = {
        (row["pool"], row["image"]): row["neighbours"]
        for row in mine.find_neighbours(
            wide, mine.sample(halves(), sample, 3), small_shards()
        ).to_pylist()
    }
    lists = {(row["pool"], row["image"]): row["neighbours"] for row in found.to_pylist()}
    hits = sum(len(set(lists[query]) & set(neighbours)) for query, neighbours in exact.items())
    assert record["recall"] == round(hits / sum(map(len, exact.values())), 4)
    assert 0.1 < record["recall"] < 1


def test_a_feature_that_is_not_finite_is_named_by_its_row(
    ray_cluster: None, wide: NDArray[np.float32], in_files: InFiles
) -> None:
    broken = wide.copy()
    broken[999, 0] = np.nan
    with pytest.raises(DataError, match="the features of row 999 are not finite"):
        mining.find_neighbours(
            in_files(broken), halves(), small_shards(), ComputeConfig(mine_workers=1)
        )


def test_a_held_out_query_that_is_not_finite_is_named_by_its_row(
    ray_cluster: None, wide: NDArray[np.float32], in_files: InFiles
) -> None:
    broken = wide.copy()
    broken[999, 0] = np.inf
    pool = mine.Pool("", np.arange(900, dtype=np.int32), np.array([5, 999], np.int32))
    with pytest.raises(DataError, match="the features of row 999 are not finite"):
        mining.find_neighbours(in_files(broken), [pool], small_shards(), ComputeConfig())


def test_no_more_shards_are_loaded_at_a_time_than_there_is_memory_for(
    ray_cluster: None,
    wide: NDArray[np.float32],
    in_files: InFiles,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load = mining._load

    def noted(*given: Any) -> Any:
        began = time.time()
        time.sleep(0.2)
        loaded = load(*given)
        (tmp_path / f"{began}").write_text(str(time.time()))
        return loaded

    monkeypatch.setattr(mining, "_load", noted)
    monkeypatch.setattr(mining, "row_bytes", lambda *_: 1 << 40)  # a shard takes all that there is
    mining.find_neighbours(in_files(wide), halves(), small_shards(), ComputeConfig())
    began, ended = zip(
        *sorted((float(file.name), float(file.read_text())) for file in tmp_path.glob("*.*")),
        strict=True,
    )
    assert len(began) >= 4
    assert all(end <= start for end, start in zip(ended, began[1:], strict=False))


def test_as_many_tasks_are_submitted_as_work_and_none_after_a_failure(
    ray_cluster: None, tmp_path: Path
) -> None:
    def work(number: int) -> None:
        (tmp_path / f"began-{number}").touch()
        if number == 1:
            while not (tmp_path / "began-0").exists():
                time.sleep(0.01)
            raise DataError("it failed")
        time.sleep(0.5)

    class Counted:
        """The task, and the numbers that it was submitted with."""

        def __init__(self) -> None:
            self.task: Any = ray.remote(num_cpus=0.1)(work)
            self.numbers: list[int] = []

        def remote(self, number: int) -> Any:
            self.numbers.append(number)
            return self.task.remote(number)

    task = Counted()
    with pytest.raises(DataError, match="it failed"):
        mining._each(task, [(number,) for number in range(6)], 2, Bar("work"))
    assert task.numbers == [0, 1]
    assert {file.name for file in tmp_path.iterdir()} == {"began-0", "began-1"}


def test_a_pool_without_queries_is_not_loaded(
    ray_cluster: None, wide: NDArray[np.float32], in_files: InFiles
) -> None:
    broken = wide.copy()
    broken[999, 0] = np.nan
    one, other = halves()
    idle = mine.Pool(other.name, other.rows_P, other.queries_Q[:0])
    found = mining.find_neighbours(in_files(broken), [one, idle], small_shards(), ComputeConfig())
    assert found.equals(mine.find_neighbours(wide, [one], small_shards()), check_metadata=True)
