"""Neighbours equal a brute-force search, ties and duplicates included."""

import json
from typing import Any

import numpy as np
import pytest

from raycd import mine
from raycd.config import MineConfig
from raycd.errors import DataError
from raycd.mine.neighbours import normalise
from tests.mine.cases import Case, oracle_neighbours, oracle_pool, random_case, settings_of


def oracle_table(case: Case, settings: MineConfig) -> list[dict[str, Any]]:
    """Return table NEIGHBOURS."""
    expected = []
    for pool in mine.make_pools(settings.pool, case.gallery(), case.rows()):
        for row in pool.queries_Q:
            members = oracle_pool(case, pool.name, settings.pool)
            found = oracle_neighbours(case, case.ids[row], members, settings.floor)
            first = found[: settings.neighbours]
            expected.append(
                {
                    "pool": pool.name,
                    "image": int(row),
                    "neighbours": [other for _, other in first],
                    "similarities": [similarity for similarity, _ in first],
                    "truncated": len(found) > settings.neighbours,
                }
            )
    return expected


def neighbours_of(case: Case, settings: MineConfig) -> list[dict[str, Any]]:
    found = mine.find_neighbours(
        case.image_ND, mine.make_pools(settings.pool, case.gallery(), case.rows()), settings
    )
    rows: list[dict[str, Any]] = found.to_pylist()
    return rows


@pytest.mark.parametrize("pool", ["all", "category"])
@pytest.mark.parametrize("kind", ["smooth", "ties", "duplicates"])
@pytest.mark.parametrize("seed", range(4))
def test_neighbours_equal_the_oracle(seed: int, kind: str, pool: str) -> None:
    case = random_case(seed, kind=kind)
    for size, floor in ((64, -1.0), (3, -1.0), (3, 0.5), (1, 0.2), (64, 0.999)):
        settings = settings_of(
            neighbours=size, floor=floor, eps_low=0.999, eps_high=1.0, s_max=1, pool=pool
        )
        assert neighbours_of(case, settings) == oracle_table(case, settings)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 19, 1024])
@pytest.mark.parametrize("kind", ["ties", "near-ties"])
def test_neighbours_do_not_depend_on_how_the_queries_are_divided(
    kind: str, batch_size: int
) -> None:
    """Near-ties: 300 images so alike that FAISS's scores order them differently in each batch."""
    case = random_case(0, kind="ties")
    if kind == "near-ties":
        rng = np.random.default_rng(0)
        image_ND = rng.normal(size=32) + 2e-4 * rng.normal(size=(300, 32))
        case = random_case(0, images=300, dim=32)._replace(image_ND=image_ND.astype(np.float32))
    settings = settings_of(neighbours=5, s_max=1, batch_size=batch_size)
    assert neighbours_of(case, settings) == oracle_table(case, settings)


def test_an_image_is_no_neighbour_of_itself_but_its_duplicates_are() -> None:
    image_ND = np.array([[1, 0], [0, 1], [1, 0], [2, 0]], np.float32)
    pool = mine.Pool("", np.arange(4, dtype=np.int32), np.arange(4, dtype=np.int32))
    found = mine.find_neighbours(image_ND, [pool], settings_of(floor=0.5, eps_low=0.5))
    assert found["neighbours"].to_pylist() == [[2, 3], [], [0, 3], [0, 2]]
    assert found["similarities"].to_pylist() == [[1.0, 1.0], [], [1.0, 1.0], [1.0, 1.0]]


def test_the_metadata_of_the_neighbours_say_how_far_they_reach() -> None:
    pool = mine.Pool("", np.arange(2, dtype=np.int32), np.zeros(0, np.int32))
    found = mine.find_neighbours(
        np.eye(2, dtype=np.float32), [pool], settings_of(neighbours=9, floor=0.25)
    )
    assert json.loads(found.schema.metadata[b"raycd.mine"]) == {"neighbours": 9, "floor": 0.25}


def test_features_that_are_not_finite_are_an_error() -> None:
    with pytest.raises(DataError, match="row 1 are not finite"):
        normalise(np.array([[1, 0], [np.nan, 0]], np.float32), np.arange(2, dtype=np.int32))
