"""The selection split is held out of mining, and no pseudo triplet repeats a triplet."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from raycd import mine
from raycd.config import ComputeConfig, MineConfig
from raycd.data.build import DatasetBuilder, TripletRow
from raycd.data.schema import TRIPLET, Dataset
from raycd.data.selection import SELECTION, hold_out
from raycd.features import READABLE, to_table
from raycd.features.stored import Stored
from raycd.runtime import mining
from tests.one_shard import write_whole

N, T, D = 120, 150, 6
NAMES = ("dress", "shirt")


def near_copies(seed: int) -> tuple[Dataset, NDArray[np.float32], NDArray[np.float32]]:
    """Return few, similar images in many triplets: most replacements would be held-out images."""
    rng = np.random.default_rng(seed)
    builder, ids = DatasetBuilder(), [f"i{number}" for number in range(N)]
    for name in NAMES:
        builder.add_gallery(name, "train", ids, source="x")
    for number in range(T):
        reference, target = rng.choice(ids[:40], 2, replace=False)
        row = TripletRow(
            f"t{number}",
            NAMES[number % 2],
            "train",
            str(reference),
            str(target),
            [f"text {number}"],
        )
        builder.add_triplet(row, where="here")
    image_ND = rng.normal(size=D) + 0.05 * rng.normal(size=(N, D))
    return (
        hold_out(builder.build({}), 0.3, seed),
        image_ND.astype(np.float32),
        np.zeros((T, D), np.float32),
    )


def settings_of(**fields: Any) -> MineConfig:
    return MineConfig.model_validate(
        {"floor": 0.5, "eps_low": 0.5, "eps_high": 1.0, "alpha": -1.0, "neighbours": 32, "s_max": 8}
        | fields
    )


def pairs(table: pa.Table) -> list[tuple[str, str]]:
    return list(zip(table["reference"].to_pylist(), table["target"].to_pylist(), strict=True))


def expected(
    dataset: Dataset,
    image_ND: NDArray[np.float32],
    members: list[str],
    image: str,
    settings: MineConfig,
) -> list[str]:
    """Return the first substitutes of an image by comparing all images that are not held out."""
    held = set(dataset.images_of(SELECTION))
    ids = [key for key in members if key not in held and key != image]
    unit = image_ND.astype(np.float64)
    unit = (
        (unit / np.linalg.norm(unit, axis=1, keepdims=True)).astype(np.float32).astype(np.float64)
    )
    similarity = np.round([unit[int(image[1:])] @ unit[int(key[1:])] for key in ids], 6)
    order = sorted(range(len(ids)), key=lambda at: (-similarity[at], int(ids[at][1:])))
    return [ids[at] for at in order if similarity[at] >= settings.floor][: settings.neighbours]


@pytest.mark.parametrize("index", ["flat", "hnsw", "ivf"])
@pytest.mark.parametrize("pool", ["all", "category"])
@pytest.mark.parametrize("seed", range(3))
def test_nothing_held_out_comes_out_of_mining(seed: int, pool: str, index: str) -> None:
    dataset, image_ND, text_TD = near_copies(seed)
    settings = settings_of(pool=pool, index=index, hnsw_m=8, ivf_probes=64)
    train, held = dataset.triplets_of("train"), set(dataset.images_of(SELECTION))
    ids = dataset.images["image_id"].to_pylist()
    rows = mine.of_triplets(ids, train, dataset.triplets)
    pools = mine.make_pools(pool, dataset.gallery, rows)
    found = mine.find_neighbours(image_ND, pools, settings)
    names = [[ids[row] for row in own] for own in found["neighbours"].to_pylist()]
    if index == "flat":
        queries = [ids[row] for row in found["image"].to_pylist()]
        assert set(queries) & held, "an image held out is still replaced by others"
        assert names == [expected(dataset, image_ND, ids, query, settings) for query in queries]
    assert not {name for own in names for name in own} & held

    table = mine.make_candidates(
        rows, found, partial(mine.matching_scores, image_ND, text_TD[: len(train)]), encoder="abc"
    )
    pseudo, counts = mine.filter_candidates(table, eps_low=0.5, eps_high=1.0, s_max=8, alpha=-1.0)
    assert len(pseudo) > 100
    assert not set(pairs(pseudo)) & set(pairs(dataset.triplets))
    assert not set(pseudo["target"].to_pylist()) & set(
        dataset.triplets_of(SELECTION)["target"].to_pylist()
    )
    again = [pair for pair in pairs(table) if pair in set(pairs(dataset.triplets))]
    assert counts["known_pairs"] == len(again) > 0
    assert counts["degenerate"] == sum(reference == target for reference, target in pairs(table))


def test_a_pair_of_val_or_of_triplets_left_out_is_known_as_well() -> None:
    dataset, image_ND, text_TD = near_copies(0)
    rows = mine.of_triplets(dataset.images["image_id"], dataset.triplets_of("train"))
    pools = mine.make_pools("all", dataset.gallery, rows)
    found = mine.find_neighbours(image_ND, pools, settings_of())
    table = mine.make_candidates(
        rows, found, partial(mine.matching_scores, image_ND, text_TD), encoder="abc"
    )
    pseudo, _ = mine.filter_candidates(table, eps_low=0.5, eps_high=1.0, s_max=8, alpha=-1.0)
    reference, target = pairs(pseudo)[0]
    builder = DatasetBuilder()
    builder.add_gallery("hat", "val", [reference, target, "elsewhere"], source="x")
    builder.add_triplet(TripletRow("v0", "hat", "val", reference, target, ["is red"]), where="here")
    builder.add_triplet(
        TripletRow("v1", "hat", "val", "elsewhere", target, ["is red"]), where="here"
    )
    val = builder.build({}).triplets
    rows = mine.of_triplets(dataset.images["image_id"], dataset.triplets_of("train"), val)
    table = mine.make_candidates(
        rows, found, partial(mine.matching_scores, image_ND, text_TD), encoder="abc"
    )
    without, _ = mine.filter_candidates(table, eps_low=0.5, eps_high=1.0, s_max=8, alpha=-1.0)
    assert (reference, target) not in pairs(without)
    assert len(without) == len(pseudo) - pairs(pseudo).count((reference, target))


def test_a_pair_of_a_further_target_is_known_as_well() -> None:
    dataset, image_ND, text_TD = near_copies(0)
    ids, train = dataset.images["image_id"], dataset.triplets_of("train")

    def mined(triplets: pa.Table) -> list[tuple[str, str]]:
        rows = mine.of_triplets(ids, triplets)
        pools = mine.make_pools("all", dataset.gallery, rows)
        found = mine.find_neighbours(image_ND, pools, settings_of())
        table = mine.make_candidates(
            rows, found, partial(mine.matching_scores, image_ND, text_TD), encoder="abc"
        )
        pseudo, _ = mine.filter_candidates(table, eps_low=0.5, eps_high=1.0, s_max=8, alpha=-1.0)
        return pairs(pseudo)

    before = mined(train)
    rows = train.to_pylist()
    target = next(target for reference, target in before if reference == rows[0]["reference"])
    rows[0]["further_targets"] = [target]
    pair = (rows[0]["reference"], target)
    after = mined(pa.Table.from_pylist(rows, schema=TRIPLET))
    assert pair not in after
    assert after == [other for other in before if other != pair]


@pytest.mark.slow
@pytest.mark.parametrize("index", ["flat", "hnsw"])
def test_ray_and_many_shards_find_the_same(ray_cluster: None, index: str, tmp_path: Path) -> None:
    dataset, _, _ = near_copies(1)
    image_ND = (
        np.random.default_rng(0).normal(size=(N, 4000)).astype(np.float32) + 1
    )  # a shard holds 65 of them
    rows = mine.of_triplets(
        dataset.images["image_id"], dataset.triplets_of("train"), dataset.triplets
    )
    pools = mine.make_pools("category", dataset.gallery, rows)
    settings = settings_of(pool="category", index=index, hnsw_m=8, worker_mib=1, batch_size=7)
    shards = mine.make_shards(pools, image_ND.shape[1], settings)
    assert any(len(np.setdiff1d(pool.queries_Q, pool.rows_P)) for pool in pools)
    one = mine.find_neighbours(image_ND, pools, settings)
    search = partial(mine.find_neighbours, image_ND)
    record = mine.searched(one, pools, 4000, settings, search, seed=0)
    assert record["shards"] == len(shards) > len(pools)
    ids = dataset.images["image_id"].to_pylist()
    write_whole(str(tmp_path), to_table(ids, [READABLE] * len(ids), image_ND))
    stored, compute = Stored.open(tmp_path), ComputeConfig(mine_workers=2)
    assert mining.find_neighbours(stored, pools, settings, compute).equals(one)
    held = set(dataset.images_of(SELECTION))
    assert not {ids[row] for own in one["neighbours"].to_pylist() for row in own} & held


def test_without_triplets_there_are_no_pseudo_triplets() -> None:
    dataset, image_ND, text_TD = near_copies(0)
    none = dataset.triplets.slice(0, 0)
    for pool in ("all", "category"):
        rows = mine.of_triplets(dataset.images["image_id"], none, dataset.triplets)
        found = mine.find_neighbours(
            image_ND, mine.make_pools(pool, dataset.gallery, rows), settings_of(pool=pool)
        )
        table = mine.make_candidates(
            rows, found, partial(mine.matching_scores, image_ND, text_TD[:0]), encoder="abc"
        )
        pseudo, counts = mine.filter_candidates(
            table, eps_low=0.5, eps_high=1.0, s_max=8, alpha=-1.0
        )
        assert (len(pseudo), counts["images"], counts["candidates"]) == (0, 0, 0)
