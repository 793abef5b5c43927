"""Thresholds as quantiles are cosines of the table itself, whatever an encoder's cosines are."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from raycd import mine
from raycd.config import MineConfig
from raycd.data.schema import GALLERY, TRIPLET
from raycd.report.examples import choose_examples
from raycd.report.mining import thresholds_line

N, T, D = 60, 40, 8


def table(spread: float, settings: MineConfig) -> pa.Table:
    """Return candidates of random images; the smaller `spread`, the closer are their cosines."""
    rng = np.random.default_rng(0)
    image_ND: NDArray[np.float32] = (1 + spread * rng.normal(size=(N, D))).astype(np.float32)
    text_TD = (spread * rng.normal(size=(T, D))).astype(np.float32)
    ids = [f"i{number}" for number in range(N)]
    gallery = [{"category": "hat", "split": "train", "image_id": key} for key in ids]
    triplets: list[dict[str, Any]] = [
        {
            "triplet_id": f"t{n}",
            "category": "hat",
            "split": "train",
            "captions": [],
            "reference": r,
            "target": t,
        }
        for n, (r, t) in enumerate(rng.choice(ids, 2, replace=False).tolist() for _ in range(T))
    ]
    rows = mine.of_triplets(ids, pa.Table.from_pylist(triplets, schema=TRIPLET))
    pools = mine.make_pools("all", pa.Table.from_pylist(gallery, schema=GALLERY), rows)
    found = mine.find_neighbours(image_ND, pools, settings)
    return mine.make_candidates(
        rows, found, partial(mine.matching_scores, image_ND, text_TD), encoder="abc"
    )


def quantiles(**fields: Any) -> MineConfig:
    given = {
        "thresholds": "quantile",
        "floor": -1,
        "neighbours": 20,
        "eps_low": 0.5,
        "eps_high": 0.9,
        "alpha": 0.25,
    }
    return MineConfig.model_validate(given | fields)


@pytest.mark.parametrize("spread", [0.05, 0.2, 3.0])
def test_quantiles_leave_the_same_share_of_any_encoders_candidates(spread: float) -> None:
    settings = quantiles(s_max=20)
    candidates = table(spread, settings)
    now = mine.resolve(candidates, settings)
    similarity, score = (
        candidates["similarity"].to_numpy(),
        candidates["score"].drop_null().to_numpy(),
    )
    assert now["s_max"] == 20
    assert {now["eps_low"], now["eps_high"]} <= set(similarity.tolist())
    assert now["alpha"] in score
    assert (similarity < now["eps_low"]).mean() == pytest.approx(0.5, abs=0.01)
    assert (similarity > now["eps_high"]).mean() == pytest.approx(0.1, abs=0.01)
    assert (score > now["alpha"]).mean() == pytest.approx(0.75, abs=0.01)
    pseudo, counts = mine.filter_candidates(candidates, **now)
    assert counts["after_similarity"] == pytest.approx(0.4 * counts["candidates"], rel=0.1)
    assert counts["images_without_substitute"] < 0.5 * counts["images"]
    assert pseudo["similarity"].to_numpy().min() >= now["eps_low"]


def test_absolute_thresholds_are_taken_as_they_are() -> None:
    settings = MineConfig(eps_low=0.91, eps_high=0.98, s_max=3, alpha=0.5)
    candidates = table(0.2, settings)
    assert mine.resolve(candidates, settings) == {
        "eps_low": 0.91,
        "eps_high": 0.98,
        "s_max": 3,
        "alpha": 0.5,
    }


def test_all_shares_from_nothing_to_everything_are_possible() -> None:
    candidates = table(0.2, quantiles())
    everything = quantiles(eps_low=0.0, eps_high=1.0, alpha=0.0, s_max=20)
    pseudo, counts = mine.filter_candidates(candidates, **mine.resolve(candidates, everything))
    assert counts["after_s_max"] == counts["candidates"]
    assert len(pseudo) == counts["candidates"] - 1  # alpha is exceeded, not reached
    nothing = quantiles(eps_low=1.0, eps_high=1.0, alpha=1.0)
    assert len(mine.filter_candidates(candidates, **mine.resolve(candidates, nothing))[0]) == 0


def test_an_empty_table_has_thresholds_too() -> None:
    candidates = table(0.2, quantiles()).slice(0, 0)
    now = mine.resolve(candidates, quantiles())
    assert (now["eps_low"], now["eps_high"], now["alpha"]) == (-1, -1, -1)
    assert len(mine.filter_candidates(candidates, **now)[0]) == 0


def test_examples_lie_about_the_thresholds_that_were_measured() -> None:
    settings = quantiles()
    candidates = table(0.2, settings)
    chosen = choose_examples(
        candidates, TRIPLET.empty_table(), settings, count=5, seed=0
    ).to_pylist()
    alpha = mine.resolve(candidates, settings)["alpha"]
    assert {row["group"] for row in chosen} == {"good", "borderline", "refused"}
    assert all((row["score"] > alpha) == (row["group"] != "refused") for row in chosen)


@pytest.mark.parametrize("field", ["eps_low", "alpha"])
def test_a_quantile_below_zero_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"mine.{field} -0.5 is not a quantile"):
        quantiles(**{field: -0.5})


def test_the_line_says_which_cosines_they_are() -> None:
    now: mine.Thresholds = {"eps_low": 0.81, "eps_high": 0.97, "s_max": 4, "alpha": 0.66}
    assert thresholds_line(quantiles(), now) == (
        "thresholds as quantiles: mine.eps_low 0.5 is similarity 0.81, mine.eps_high 0.9 is 0.97, "
        "mine.alpha 0.25 is score 0.66"
    )
