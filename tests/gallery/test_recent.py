"""Images that were added after an index was built are found as if they were in it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from raycd.config import IndexConfig
from raycd.gallery import recent
from raycd.gallery.recent import Recent
from raycd.index import Index, ivf

DIM, LATER = 16, 900
LISTS = ["ivf", "sq8", "rabitq"]
KINDS = ["flat", "half", "hnsw", *LISTS]


def unit(count: int, seed: int) -> NDArray[np.float32]:
    """Return normalised features in 20 groups, the same for any seed."""
    centres = np.random.default_rng(0).normal(size=(20, DIM))
    vectors = centres[np.arange(count) % 20] + 0.4 * np.random.default_rng([1, seed]).normal(
        size=(count, DIM)
    )
    normalised: NDArray[np.float32] = (
        vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    ).astype(np.float32)
    return normalised


UNIT_GD, UNIT_AD, QUERY_BD = unit(2000, 1), unit(LATER, 2), unit(100, 3)
ALLOWED = {
    "all": np.ones(LATER, np.bool_),
    "nearly all": np.random.default_rng(3).random(LATER) < 0.95,
    "one group": np.arange(LATER) % 20 == 3,
    "three": np.isin(np.arange(LATER), [7, 8, 899]),
    "none": np.zeros(LATER, np.bool_),
}


def grown(kind: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Index, Recent]:
    """Return an index, and all later images, added a hundred at a time."""
    monkeypatch.setattr(recent, "MAX_UNINDEXED", 150)
    monkeypatch.setattr(ivf, "FEW", 20)
    index = Index.build(
        UNIT_GD,
        IndexConfig.model_validate({"kind": kind, "recall": 0.98, "sample": 200}),
        threads=1,
    )
    known = Recent.none(index)
    for end in range(100, LATER + 1, 100):
        known = known.grown(UNIT_AD[:end])
        if known.needs_merge:
            known = known.put_into_lists()
    return index, known


@pytest.mark.parametrize("name", ALLOWED)
@pytest.mark.parametrize("kind", KINDS)
def test_all_that_is_allowed_can_be_found_and_nothing_else(
    kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = ALLOWED[name]
    true_BA = np.where(allowed, QUERY_BD @ UNIT_AD.T, -np.inf)
    true_BK = -np.sort(-true_BA, axis=1)[:, :10]
    _, known = grown(kind, monkeypatch)
    off = 5e-4 if kind in ("sq8", "rabitq") else 1e-5  # lists of float16
    for exact in (True, False):
        scores, positions = known.search(QUERY_BD, 10, allowed, exact=exact)
        found = positions >= 0
        assert (found == np.isfinite(true_BK)).all(), "as many as there are"
        assert (np.isfinite(scores) == found).all()
        assert allowed[positions[found]].all()
        np.testing.assert_allclose(
            scores[found], np.take_along_axis(true_BA, positions, axis=1)[found], atol=off
        )
        assert (np.sort(-scores, axis=1) == -scores).all(), "best first"
        if exact or kind not in LISTS:
            np.testing.assert_allclose(scores, true_BK, atol=1e-5)


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("name", ["all", "nearly all", "one group"])
def test_together_with_the_index_they_have_its_recall(
    name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, known = grown(kind, monkeypatch)
    among = index.search(QUERY_BD, 10), known.search(QUERY_BD, 10, ALLOWED[name])
    found = -np.sort(-np.hstack([scores for scores, _ in among]), axis=1)[:, :10]
    true_BA = np.where(ALLOWED[name], QUERY_BD @ UNIT_AD.T, -np.inf)
    true = -np.sort(-np.hstack([QUERY_BD @ UNIT_GD.T, true_BA]), axis=1)[:, :10]
    off = 1e-5 if kind == "ivf" else 2e-4  # the rounding of float16
    assert (found >= true[:, -1:] - off).mean() >= 0.97


def test_most_of_them_are_in_lists_where_the_index_has_lists(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for kind in KINDS:
        assert grown(kind, monkeypatch)[1].listed == (800 if kind in LISTS else 0)


def test_what_it_was_grown_from_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "MAX_UNINDEXED", 50)
    index = Index.build(UNIT_GD, IndexConfig(kind="ivf"), threads=1)
    first = Recent.none(index).grown(UNIT_AD[:300]).put_into_lists()
    before = first.search(QUERY_BD, 300, ALLOWED["all"][:300])
    first.grown(UNIT_AD).put_into_lists()
    after = first.search(QUERY_BD, 300, ALLOWED["all"][:300])
    np.testing.assert_array_equal(before[1], after[1])
    assert len(first) == first.listed == 300


def test_lists_of_an_earlier_state_are_taken_over_unless_they_are_another_index_s() -> None:
    index = Index.build(UNIT_GD, IndexConfig(kind="ivf"), threads=1)
    first = Recent.none(index).grown(UNIT_AD[:300])
    later = first.grown(UNIT_AD)
    assert later.with_lists_of(first.put_into_lists()).listed == 300
    other = Recent.none(Index.build(UNIT_GD, IndexConfig(kind="ivf"), threads=1)).grown(
        UNIT_AD[:300]
    )
    assert later.with_lists_of(other.put_into_lists()).listed == 0
