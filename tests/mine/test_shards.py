"""A pool searched in shards gives what plain numpy gives, and no shard exceeds its memory."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from raycd import mine
from raycd.config import MineConfig
from raycd.errors import DataError
from raycd.index import approximate
from raycd.mine.neighbours import make_ready, normalise, row_bytes, to_table
from raycd.mine.search import search

N, D = 2000, 400  # 3.05 MiB
S = 5


def features_of(kind: str) -> NDArray[np.float32]:
    """Return features (N, D).

    `ties`: 729 different images, so that equal ones and equal similarities are in all shards;
    `few`: 27 of them.
    """
    rng = np.random.default_rng(0)
    if kind == "smooth":
        return (rng.normal(size=(N, D)) + rng.normal(size=D)).astype(np.float32)
    features_ND = np.zeros((N, D), np.float32)
    different = {"ties": 6, "few": 3}[kind]
    features_ND[:, :different] = rng.integers(0, 3, (N, different))
    return features_ND


def pools() -> list[mine.Pool]:
    """Return two pools that share images; one has gaps, and all of its shards have queries."""
    odd = np.concatenate([np.arange(1, 1400, 2), np.arange(1400, N)])
    parts = [(np.arange(1500), np.arange(7, 1500, 15)), (odd, odd[::13])]
    return [
        mine.Pool(f"pool-{number}", rows.astype(np.int32), queries.astype(np.int32))
        for number, (rows, queries) in enumerate(parts)
    ]


def settings_of(**fields: Any) -> MineConfig:
    return MineConfig(
        **({"neighbours": S, "floor": 0.3, "eps_low": 0.3, "s_max": 1, "worker_mib": 1} | fields)
    )


def oracle(features_ND: NDArray[np.float32], pool: mine.Pool, floor: float) -> list[dict[str, Any]]:
    """Return table NEIGHBOURS of a pool: all similarities at once, sorted by similarity and row."""
    wide = features_ND.astype(np.float64)
    length = np.sqrt((wide * wide).sum(axis=1, keepdims=True))
    unit = (wide / np.where(length > 0, length, 1)).astype(np.float32).astype(np.float64)
    similarity_QP = np.round(unit[pool.queries_Q] @ unit[pool.rows_P].T, 6)
    rows = []
    for query, own_P in zip(pool.queries_Q.tolist(), similarity_QP, strict=True):
        order = np.lexsort([pool.rows_P, -own_P])
        found = [
            number for number in order if pool.rows_P[number] != query and own_P[number] >= floor
        ]
        first = {
            "neighbours": pool.rows_P[found[:S]].tolist(),
            "similarities": own_P[found[:S]].tolist(),
            "truncated": len(found) > S,
        }
        rows.append({"pool": pool.name, "image": query, **first})
    return rows


@pytest.mark.parametrize("batch_size", [17, 1024])
@pytest.mark.parametrize("kind", ["smooth", "ties"])
def test_neighbours_in_several_shards_equal_the_oracle(kind: str, batch_size: int) -> None:
    features_ND, settings = features_of(kind), settings_of(batch_size=batch_size)
    assert [shard.name[-1] for shard in mine.make_shards(pools(), D, settings)] == [*"00011"]
    found = mine.find_neighbours(features_ND, pools(), settings)
    assert found.to_pylist() == [row for pool in pools() for row in oracle(features_ND, pool, 0.3)]
    assert set(found["truncated"].to_pylist()) >= {True}


def test_the_size_of_the_shards_changes_nothing() -> None:
    features_ND = features_of("ties")
    one, two, several = (
        mine.find_neighbours(features_ND, pools(), settings_of(worker_mib=mib)) for mib in (4, 2, 1)
    )
    assert one.equals(two, check_metadata=True)
    assert one.equals(several, check_metadata=True)


@pytest.mark.parametrize("seed", range(3))
def test_shards_may_be_searched_in_any_order(seed: int) -> None:
    features_ND, settings = features_of("ties"), settings_of(batch_size=23)
    order, found = np.random.default_rng(seed), []
    for pool in pools():
        shards = mine.make_shards([pool], D, settings)
        ready = [make_ready(features_ND[each.rows_P], each.rows_P, settings) for each in shards]
        mixed = [ready[at] for at in order.permutation(len(ready))]
        unit_QD = normalise(features_ND[pool.queries_Q], pool.queries_Q)
        found.append(search(pool.queries_Q, unit_QD, mixed, settings))
    expected = mine.find_neighbours(features_ND, pools(), settings)
    assert to_table(pools(), found, settings).equals(expected, check_metadata=True)


@pytest.mark.parametrize(
    "settings",
    [
        settings_of(),
        settings_of(index="hnsw", worker_mib=2),
        settings_of(index="hnsw", hnsw_m=2, worker_mib=2),
        settings_of(index="hnsw", hnsw_m=128, worker_mib=4),
        settings_of(index="ivf", worker_mib=3),
        settings_of(index="ivf", ivf_lists=1000, worker_mib=5),
    ],
    ids=lambda settings: f"{settings.index}-{settings.worker_mib}-{settings.hnsw_m}",
)
def test_a_shard_with_its_index_needs_no_more_memory_than_a_worker_may_have(
    settings: MineConfig,
) -> None:
    features_ND = features_of("smooth")
    shards = mine.make_shards(pools(), D, settings)
    for pool in pools():
        parts = [shard.rows_P for shard in shards if shard.name == pool.name]
        assert np.array_equal(np.concatenate(parts), pool.rows_P)
        assert len(parts) > 1
    for shard in shards[:2]:
        unit_PD = normalise(features_ND[shard.rows_P], shard.rows_P)
        copies = {"flat": 0, "hnsw": 3, "ivf": 4}[settings.index]  # at once, while it is built
        index = copies * approximate.build(unit_PD, settings).nbytes if copies else 0
        assert unit_PD.nbytes + index <= settings.worker_mib << 20
        stated = len(shard.rows_P) * row_bytes(D, settings)
        assert (
            0.95 * stated < unit_PD.nbytes + index <= stated + 4096
        )  # a kilobyte of names and numbers each


PEAK = """
import re, sys
from pathlib import Path
import numpy as np
from raycd.index import approximate
from raycd.config import MineConfig

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

count, dim = int(sys.argv[1]), int(sys.argv[2])
settings = MineConfig.model_validate_json(sys.argv[3])
unit_PD = np.random.default_rng(0).standard_normal((count, dim), np.float32)
approximate.build(unit_PD[:1000], settings)  # what FAISS itself needs
before = peak()
approximate.build(unit_PD, settings)
print(unit_PD.nbytes + peak() - before)
"""


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the peak of memory is read from Linux's /proc"
)
@pytest.mark.parametrize(
    "fields", [{"index": "hnsw", "hnsw_m": 4, "hnsw_ef": 8}, {"index": "ivf", "ivf_lists": 16}]
)
def test_the_peak_of_building_an_index_is_counted(fields: dict[str, Any]) -> None:
    count, dim, settings = 15_000, 512, MineConfig.model_validate(fields)
    argv = [sys.executable, "-c", PEAK, str(count), str(dim), settings.model_dump_json()]
    measured = int(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
    stated = count * row_bytes(dim, settings)
    assert 0.75 * stated < measured < stated + (4 << 20)


def test_a_shard_holds_one_image_at_least() -> None:
    [pool] = [mine.Pool("", np.arange(3, dtype=np.int32), np.arange(3, dtype=np.int32))]
    assert [len(shard.rows_P) for shard in mine.make_shards([pool], 1 << 20, settings_of())] == [
        1,
        1,
        1,
    ]


@pytest.mark.parametrize("row", [1, 1399, 1999])
def test_a_feature_that_is_not_finite_is_named_by_its_row_in_any_shard(row: int) -> None:
    features_ND = features_of("smooth")
    features_ND[row, 3] = np.inf
    with pytest.raises(DataError, match=f"the features of row {row} are not finite"):
        mine.find_neighbours(features_ND, pools(), settings_of())


def test_an_empty_pool_has_an_empty_table() -> None:
    nothing = np.zeros(0, np.int32)
    found = mine.find_neighbours(
        features_of("ties"), [mine.Pool("", nothing, nothing)], settings_of()
    )
    assert (len(found), found.schema.names) == (0, mine.NEIGHBOURS.names)
    assert isinstance(found, pa.Table)
