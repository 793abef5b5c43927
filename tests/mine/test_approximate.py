"""HNSW and IVF: their recall equals brute force's, they are repeatable, low recall is reported."""

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from raycd import mine
from raycd.config import MineConfig
from raycd.report.mining import low_recall, searched_line

N, D = 3000, 40
ENOUGH: dict[str, dict[str, int]] = {"hnsw": {"hnsw_ef": 256}, "ivf": {"ivf_probes": 32}}
LITTLE: dict[str, dict[str, int]] = {"hnsw": {"hnsw_m": 2, "hnsw_ef": 1}, "ivf": {"ivf_probes": 1}}


def clustered() -> NDArray[np.float32]:
    """Return noise around 60 centres."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(60, D))
    return (centres[rng.integers(0, 60, N)] + 0.5 * rng.normal(size=(N, D))).astype(np.float32)


EVERYTHING = [mine.Pool("", np.arange(N, dtype=np.int32), np.arange(0, N, 3, dtype=np.int32))]


def found_by(index: str, **fields: int) -> pa.Table:
    settings = MineConfig.model_validate({"index": index, "neighbours": 10, "floor": 0.5, **fields})
    return mine.find_neighbours(clustered(), EVERYTHING, settings)


def recall_by_hand(found: pa.Table) -> float:
    """Return the share of numpy's first ten pairs (query, neighbour), at or above the floor."""
    wide = clustered().astype(np.float64)
    unit = (
        (wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float32).astype(np.float64)
    )
    similarity_QP = np.round(unit[EVERYTHING[0].queries_Q] @ unit.T, 6)
    hits = wanted = 0
    for query, own_P, neighbours in zip(
        EVERYTHING[0].queries_Q, similarity_QP, found["neighbours"].to_pylist(), strict=True
    ):
        own_P[query] = -1
        exact = {
            index
            for index in np.argsort(-own_P, kind="stable")[:10].tolist()
            if own_P[index] >= 0.5
        }
        hits, wanted = hits + len(exact & set(neighbours)), wanted + len(exact)
    return hits / wanted


@pytest.mark.parametrize("index", ["hnsw", "ivf"])
def test_recall_is_what_brute_force_says_and_grows_with_the_effort(index: str) -> None:
    exact = found_by("flat")
    much, little = found_by(index, **ENOUGH[index]), found_by(index, **LITTLE[index])
    assert recall_by_hand(exact) == 1.0
    for found in (much, little):
        assert mine.recall(found, exact) == pytest.approx(recall_by_hand(found), abs=1e-12)
    assert mine.recall(much, exact) > 0.9
    assert mine.recall(little, exact) < mine.recall(much, exact) - 0.02


@pytest.mark.parametrize("index", ["hnsw", "ivf"])
def test_what_is_found_is_exactly_measured(index: str) -> None:
    """What an approximate search finds has the similarity that exact search gives it."""
    exact = dict(pairs(found_by("flat")))
    found = dict(pairs(found_by(index, **LITTLE[index])))
    both = exact.keys() & found.keys()
    assert len(both) > 1000
    assert {pair: found[pair] for pair in both} == {pair: exact[pair] for pair in both}


def pairs(found: pa.Table) -> list[tuple[tuple[int, int], float]]:
    return [
        ((row["image"], neighbour), similarity)
        for row in found.to_pylist()
        for neighbour, similarity in zip(row["neighbours"], row["similarities"], strict=True)
    ]


@pytest.mark.parametrize("index", ["hnsw", "ivf"])
def test_the_same_features_give_the_same_neighbours(index: str) -> None:
    """Few links and few lists, and batches of other sizes: nothing depends on threads."""
    first, again = (found_by(index, **LITTLE[index], batch_size=size) for size in (1024, 37))
    assert first.equals(again, check_metadata=True)


def test_a_sample_has_the_queries_that_the_seed_draws() -> None:
    pools = [*EVERYTHING, mine.Pool("b", EVERYTHING[0].rows_P, np.arange(50, dtype=np.int32))]
    drawn, again, other = (mine.sample(pools, 100, seed) for seed in (0, 0, 1))
    assert sum(len(pool.queries_Q) for pool in drawn) == 100
    assert all(np.array_equal(a.queries_Q, b.queries_Q) for a, b in zip(drawn, again, strict=True))
    assert not np.array_equal(drawn[0].queries_Q, other[0].queries_Q)
    for pool, part in zip(pools, drawn, strict=True):
        assert set(part.queries_Q) <= set(pool.queries_Q)
        assert np.array_equal(part.rows_P, pool.rows_P)
    assert sum(len(pool.queries_Q) for pool in mine.sample(pools, 10**6, 0)) == 1050


def record_of(index: str, *, recall: float = 0.987, shards: int = 3) -> mine.Searched:
    return {
        "kind": index,
        "shards": shards,
        "worker_mib": 512.0,
        "recall": recall,
        "sample": 1000,
    }


def refused(*_: Any) -> pa.Table:
    raise AssertionError("flat is exact: nothing is searched again")


def test_the_record_says_kind_shards_memory_and_recall() -> None:
    rows = np.arange(1000, dtype=np.int32)
    pools = [mine.Pool("", rows, rows)] * 3  # 1,000 rows of 1 KiB are 0.98 MiB
    said = {"kind": "flat", "worker_mib": 1.0, "recall": 1.0, "sample": 0}
    nothing = mine.NEIGHBOURS.empty_table()
    record = mine.searched(nothing, pools, 256, MineConfig(), refused, seed=0)
    assert record == said | {"shards": 3}
    record = mine.searched(nothing, [], 640, MineConfig(), refused, seed=0)
    assert record == said | {"shards": 0, "worker_mib": 0.0}


@pytest.mark.parametrize("index", ["hnsw", "ivf"])
def test_the_recall_in_the_record_is_that_of_the_sample(index: str) -> None:
    fields: dict[str, Any] = {"index": index, "neighbours": 10, "floor": 0.5, **LITTLE[index]}
    settings = MineConfig.model_validate(fields | {"recall_sample": 200})
    found, search = found_by(index, **LITTLE[index]), partial(mine.find_neighbours, clustered())
    record = mine.searched(found, EVERYTHING, D, settings, search, seed=5)
    exact = search(mine.sample(EVERYTHING, 200, 5), settings.model_copy(update={"index": "flat"}))
    assert (record["kind"], record["sample"]) == (index, 200)
    assert record["recall"] == round(mine.recall(found, exact), 4) < 1


def test_the_record_is_a_line() -> None:
    found = record_of("hnsw")
    assert searched_line(found) == (
        "hnsw, 3 shards of at most 512 MiB, recall 0.987 of the exact neighbours of 1,000 images"
    )
    assert searched_line(record_of("flat", shards=1)) == "flat, 1 shard of 512 MiB, exact"


def test_a_recall_below_95_per_cent_is_reported_with_its_remedy() -> None:
    assert low_recall(record_of("hnsw", recall=0.95)) == []
    [said] = low_recall(record_of("hnsw", recall=0.9412))
    assert said == (
        "hnsw found 94.1% of the exact neighbours of 1,000 images, less than 95%: "
        "raise mine.hnsw_ef and mine again"
    )
    [said] = low_recall(record_of("ivf", recall=0.2))
    assert "raise mine.ivf_probes" in said
