"""Boosts, near-duplicates, groups and diversity against plain loops of NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from raycd import bundle
from raycd.search import arranging
from raycd.search.query import Arrangement, AttributeBoost, Found, Prepared, Query
from raycd.search.searcher import Searcher

N, DIM = 40, 8


@dataclass(frozen=True)
class Known:
    """Images of random features and attributes, as a search finds them: `gallery.state.Images`."""

    unit_ND: NDArray[np.float32]
    attributes_N: Sequence[Mapping[str, str]]

    def position(self, image_id: str) -> int | None:
        return None

    def image_id(self, position: int) -> str:
        return f"image-{position}"

    def category(self, position: int) -> str:
        return ""

    def attributes(self, position: int) -> dict[str, str]:
        return dict(self.attributes_N[position])

    def vectors(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.unit_ND[positions]


@pytest.fixture
def found() -> Found:
    """Candidates of a query in their order; some are near-duplicates, some lack an attribute."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((N, DIM))
    features[10:20] = features[:10] + 0.05 * rng.standard_normal((10, DIM))
    unit_ND = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    attributes: list[dict[str, str]] = [
        {"brand": f"b{rng.integers(6)}", "price": str(rng.integers(5, 30))} for _ in range(N)
    ]
    for at in range(0, N, 7):
        attributes[at] = {"price": "free"}
    query_D = unit_ND[3] + 0.5 * unit_ND[8]
    score_N = unit_ND @ (query_D / np.linalg.norm(query_D))
    order = np.argsort(-score_N, kind="stable")
    return Found(score_N[order], order, Known(unit_ND, attributes))


def arranged(found: Found, *, top_k: int = N, offset: int = 0, **wanted: Any) -> Found:
    arrangement = Arrangement(**{"depth": N, **wanted})
    query = Query(text="x", top_k=top_k, offset=offset, arrangement=arrangement)
    view: Any = None
    return arranging.arrange(Prepared(query, view, [], None, None), found)


def numbers(found: Found, attribute: str) -> list[float]:
    texts = [found.images.attributes(at).get(attribute, "") for at in found.positions.tolist()]
    return [float(text) if text.isdigit() else float("nan") for text in texts]


def test_without_an_arrangement_nothing_changes(found: Found) -> None:
    view: Any = None
    plain = arranging.arrange(Prepared(Query(text="x"), view, [], None, None), found)
    assert plain is found
    assert arranged(found).positions.tolist() == found.positions.tolist()


@pytest.mark.parametrize("diversity", [0.1, 0.5, 0.9, 1.0])
def test_diversity_is_maximal_marginal_relevance(found: Found, diversity: float) -> None:
    unit_ND = found.images.vectors(found.positions)
    chosen: list[int] = []
    while len(chosen) < 15:
        left = [at for at in range(N) if at not in chosen]

        def marginal(at: int) -> float:
            nearest = max((float(unit_ND[at] @ unit_ND[other]) for other in chosen), default=0.0)
            relevance = float(found.scores[at])
            return (1 - diversity) * relevance - diversity * nearest if chosen else relevance

        chosen.append(max(left, key=marginal))
    got = arranged(found, top_k=12, offset=3, diversity=diversity)
    assert got.positions.tolist() == found.positions[chosen].tolist()
    assert got.scores.tolist() == found.scores[chosen].tolist()


def test_diversity_brings_results_that_are_less_alike(found: Found) -> None:
    def alike(some: Found) -> float:
        unit_RD = some.images.vectors(some.positions[:8])
        return float((unit_RD @ unit_RD.T)[np.triu_indices(8, 1)].mean())

    likeness = [alike(arranged(found, diversity=value)) for value in (0.0, 0.3, 0.7)]
    assert likeness == sorted(likeness, reverse=True)
    assert likeness[0] - likeness[-1] > 0.1


def test_near_duplicates_of_better_ones_are_hidden(found: Found) -> None:
    unit_ND = found.images.vectors(found.positions)
    kept: list[int] = []
    for at in range(N):
        if all(float(unit_ND[at] @ unit_ND[other]) < 0.95 for other in kept):
            kept.append(at)
    got = arranged(found, alike=0.95)
    assert got.positions.tolist() == found.positions[kept].tolist()
    assert len(kept) < N - 5


def test_what_a_group_leaves_out_hides_nothing_and_copies_are_hidden_at_1() -> None:
    # 1 is in the group of 0, and 2 is like 1 alone
    unit_ND = np.array([[1, 0], [0.6, 0.8], [0.5, 0.866]], np.float32)
    assert arranging.spread(3, ["a", "a", "b"], unit_ND, 0.95).tolist() == [0, 2]
    assert arranging.spread(3, None, unit_ND, 0.95).tolist() == [0, 1]
    rows = np.random.default_rng(0).normal(size=(200, 640)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    twice_ND = np.concatenate([rows, rows])
    assert arranging.spread(400, None, twice_ND, 1.0).tolist() == list(range(200))


def test_a_group_shows_its_best_image_and_those_without_the_attribute_are_their_own(
    found: Found,
) -> None:
    seen: set[str] = set()
    kept = []
    for at, position in enumerate(found.positions.tolist()):
        brand = found.images.attributes(position).get("brand")
        if brand is None or brand not in seen:
            kept.append(at)
        seen.add(brand or "")
    assert arranged(found, group_by="brand").positions.tolist() == found.positions[kept].tolist()
    assert len(kept) == 6 + len(range(0, N, 7))


@pytest.mark.parametrize("weight", [0.3, -0.3])
def test_a_boost_adds_the_percentile_of_the_number_among_the_candidates(
    found: Found, weight: float
) -> None:
    price_N = numbers(found, "price")
    known = [price for price in price_N if price == price]
    shares = []
    for price in price_N:
        below = sum(other < price for other in known)
        ties = sum(other == price for other in known) - 1
        shares.append((below + ties / 2) / (len(known) - 1) if price == price else 0.5)
    value_N = found.scores.astype(np.float64) + weight * np.array(shares)
    order = np.argsort(-value_N, kind="stable")
    got = arranged(found, boost=AttributeBoost("price", weight))
    assert got.positions.tolist() == found.positions[order].tolist()
    assert got.boosted == pytest.approx(value_N[order])
    assert got.scores.tolist() == found.scores[order].tolist()


def test_a_boost_by_what_has_no_two_numbers_changes_no_order(found: Found) -> None:
    for attribute in ("brand", "nothing"):
        got = arranged(found, boost=AttributeBoost(attribute, 5.0))
        assert got.positions.tolist() == found.positions.tolist()
    assert arranging.percentiles(["7"]).tolist() == [0.5]
    assert arranging.percentiles(["1", "", "3", "2"]).tolist() == [0.0, 0.5, 1.0, 0.5]
    assert arranging.percentiles([]).tolist() == []


def test_all_of_it_acts_in_its_order_on_the_first_candidates_alone(found: Found) -> None:
    wanted: dict[str, Any] = {
        "boost": AttributeBoost("price", 0.2),
        "alike": 0.95,
        "group_by": "brand",
    }
    first = Found(found.scores[:25], found.positions[:25], found.images)
    boosted = arranged(first, boost=wanted["boost"])
    again = Found(boosted.boosted, boosted.positions, found.images)  # type: ignore[arg-type]  # there with a boost
    unit_ND, kept = found.images.vectors(again.positions), list[int]()
    brands = [found.images.attributes(at).get("brand") for at in again.positions.tolist()]
    for at, brand in enumerate(brands):
        alike = any(float(unit_ND[at] @ unit_ND[other]) >= 0.95 for other in kept)
        if not alike and (brand is None or brand not in [brands[other] for other in kept]):
            kept.append(at)
    expected = Found(again.scores[kept], again.positions[kept], found.images)
    got = arranged(found, depth=25, **wanted)
    assert got.positions.tolist() == expected.positions.tolist()
    diverse = arranged(found, depth=25, **wanted, diversity=0.4)
    assert diverse.positions.tolist() == arranged(expected, diversity=0.4).positions.tolist()


def test_what_was_not_reranked_stays_below_what_was(found: Found) -> None:
    reranked = np.full(N, np.nan, np.float32)
    reranked[:5] = [0.1, 0.05, 0.0, -0.05, -0.1]
    got = arranged(found._replace(reranked=reranked), alike=1.1)
    assert got.positions.tolist() == found.positions.tolist()
    assert got.reranked is not None
    assert got.reranked[:5].tolist() == reranked[:5].tolist()


def test_no_candidate_is_no_result(found: Found) -> None:
    none = Found(found.scores[:0], found.positions[:0], found.images)
    got = arranged(
        none, boost=AttributeBoost("price", 1), alike=0.9, group_by="brand", diversity=0.5
    )
    assert len(got.positions) == 0


def test_a_search_looks_as_deep_as_its_arrangement_says(tiny_bundle: Any) -> None:
    searcher = Searcher(bundle.load(tiny_bundle.folder), threads=1)
    whole = [one.image_id for one in searcher.search([Query(text="is blue", top_k=12)])[0]]
    striped = [one for one in whole if int(one[6:]) % 3 == 0]

    def grouped(depth: int, **fields: Any) -> list[str]:
        arrangement = Arrangement(depth, group_by="pattern")
        query = Query(text="is blue", arrangement=arrangement, **{"top_k": 12, **fields})
        other = Query(text="is blue", top_k=12)  # of the same batch, and deeper
        return [one.image_id for one in searcher.search([query, other])[0]]

    expected = [one for one in whole if one not in striped[1:]]
    assert grouped(12) == expected
    assert grouped(12, offset=2, top_k=3) == expected[2:5]
    assert grouped(6) == [one for one in whole[:6] if one not in striped[1:]]
