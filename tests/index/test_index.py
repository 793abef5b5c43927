from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from raycd.config import IndexConfig
from raycd.config.fields import IndexKind
from raycd.errors import WeightsError
from raycd.index import FILES, Index, ivf, on_gpu
from raycd.index.choice import KINDS, MAPPED
from raycd.index.rabitq import Rabitq
from raycd.index.sq8 import Sq8

EXACT = ["flat", "half"]
FEATURES = np.array([[2.0, 0.0], [0.0, 5.0], [3.0, 4.0]], np.float32)
EAST = np.array([[1.0, 0.0]], np.float32)
GALLERY, GROUPS, DIM = 2000, 20, 16

Vectors = NDArray[np.float32]


def unit(vectors: Vectors) -> Vectors:
    normalised: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return normalised


def drawn(count: int, seed: int) -> Vectors:
    """Draw features of any length, in 20 groups; feature i is of group i % 20."""
    centres = np.random.default_rng(0).normal(size=(GROUPS, DIM))
    noise = np.random.default_rng([1, seed]).normal(size=(count, DIM))
    return (3 * (centres[np.arange(count) % GROUPS] + 0.4 * noise)).astype(np.float32)


FEATURES_GD = drawn(GALLERY, 0)
QUERY_BD = unit(drawn(100, 1))
COSINE_BG = QUERY_BD @ unit(FEATURES_GD).T
HALF_BG = QUERY_BD @ unit(FEATURES_GD).astype(np.float16).astype(np.float32).T
MASKS = {
    "none at all": np.zeros(GALLERY, np.bool_),
    "three images": np.isin(np.arange(GALLERY), [7, 8, 1999]),
    "one group": np.arange(GALLERY) % GROUPS == 3,
    "half of the groups": np.arange(GALLERY) % GROUPS < GROUPS // 2,
    "a third at random": np.random.default_rng(2).random(GALLERY) < 1 / 3,
    "nearly all": np.random.default_rng(3).random(GALLERY) < 0.95,
}


@pytest.fixture(scope="module", params=KINDS)
def index(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Return each kind, built, saved and loaded."""
    folder = tmp_path_factory.mktemp(request.param)
    built = Index.build(
        FEATURES_GD, IndexConfig(kind=request.param, recall=0.98, sample=200), threads=1
    )
    return Index.load(folder, built.save(folder), threads=1)


def cosines(index: Index) -> Vectors:
    """Return the cosines of the numbers that an index of this kind stores."""
    return HALF_BG if index.kind in MAPPED else COSINE_BG


def nearest(
    cosine_BG: Vectors, k: int, allowed: NDArray[np.bool_] | None = None
) -> tuple[Vectors, NDArray[np.int64]]:
    """Search by brute force: scores and positions, -inf and -1 where no more are allowed."""
    if allowed is not None:
        cosine_BG = np.where(allowed, cosine_BG, -np.inf)
    positions = np.argsort(-cosine_BG, axis=1)[:, :k]
    scores = np.take_along_axis(cosine_BG, positions, axis=1)
    return scores, np.where(np.isinf(scores), -1, positions)


def rounding(index: Index) -> float:
    """Return by how much a score, or a number of a vector, may be off."""
    return 5e-4 if index.kind in MAPPED else 1e-6


def recall(found: NDArray[np.int64], truth: NDArray[np.int64]) -> float:
    """Return the share of the true positions that were found; 1 where there are none."""
    hits = sum(
        np.isin(other[other >= 0], one).sum() for one, other in zip(found, truth, strict=True)
    )
    return float(hits / wanted) if (wanted := (truth >= 0).sum()) else 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_every_search_is_exact(kind: IndexKind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_gpu, "SCORES", 7 * GALLERY)  # seven queries at once
    settings = IndexConfig(kind=kind, recall=0.5, sample=50)
    index = Index.build(FEATURES_GD, settings, threads=1)
    assert index.recall < 1.0 or kind in EXACT
    index = index.on("cpu:0")  # a device as any other
    assert index.recall == 1.0
    for allowed in (None, *MASKS.values()):
        scores, positions = index.search(QUERY_BD, 30, allowed=allowed)
        true_scores, true_positions = nearest(cosines(index), 30, allowed)
        assert scores == pytest.approx(true_scores, abs=rounding(index))
        if index.kind not in MAPPED:
            assert np.array_equal(positions, true_positions)
    empty = Index.build(np.empty((0, DIM), np.float32), IndexConfig(kind="flat"))
    assert empty.on("cpu:0").search(QUERY_BD, 5)[1].shape == (len(QUERY_BD), 0)


def test_search_ranks_by_cosine_whatever_the_lengths() -> None:
    scores, positions = Index.build(FEATURES, IndexConfig()).search(EAST, 3)
    assert positions.tolist() == [[0, 2, 1]]
    assert scores == pytest.approx(np.array([[1.0, 0.6, 0.0]]), abs=1e-6)


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_copies_of_an_image_are_on_no_two_pages_and_none_is_lost(
    kind: IndexKind, exact: bool, device: str
) -> None:
    rng = np.random.default_rng(2)
    once = unit(rng.normal(size=(500, DIM)).astype(np.float32))
    index = Index.build(np.concatenate([once, once]), IndexConfig(kind=kind, sample=50)).on(device)
    queries = unit(rng.normal(size=(40, DIM)).astype(np.float32))
    for allowed in (None, rng.random(1000) < 0.8):
        first = index.search(queries, 11, exact=exact, allowed=allowed)[1]
        both = index.search(queries, 22, exact=exact, allowed=allowed)[1]
        if exact:
            assert np.array_equal(first, both[:, :11])
        # A walk through a graph may find more where it is asked for more
        assert (first == both[:, :11]).mean() > (0.96 if kind == "hnsw" else 0.99)


def test_many_copies_and_queries_without_any_are_searched_together() -> None:
    rng = np.random.default_rng(3)
    others = unit(rng.normal(size=(300, DIM)).astype(np.float32))
    copies = np.repeat(others[:1], 700, axis=0)
    index = Index.build(np.concatenate([others[1:], copies]), IndexConfig(kind="flat"))
    queries = np.concatenate([others[:1], others[5:6]])
    _, positions = index.search(queries, 10)
    assert positions[0].tolist() == list(range(299, 309))
    assert positions[1, 0] == 4
    assert np.array_equal(index.search(queries, 40)[1][:, :10], positions)


def test_equal_images_come_in_the_order_of_their_positions() -> None:
    _, positions = Index.build(np.vstack([FEATURES, 2 * FEATURES, FEATURES]), IndexConfig()).search(
        EAST, 9
    )
    assert positions.tolist() == [[0, 3, 6, 2, 5, 8, 1, 4, 7]]


def test_auto_is_flat_up_to_a_size_and_then_ivf() -> None:
    settings = IndexConfig(flat_up_to=2000, sample=50)
    assert Index.build(FEATURES_GD, settings).kind == "flat"
    assert Index.build(FEATURES_GD, settings.model_copy(update={"flat_up_to": 1999})).kind == "ivf"


def test_every_kind_states_what_it_is(index: Index) -> None:
    assert (index.size, index.dim) == (GALLERY, DIM)
    assert index.recall == 1.0 if index.kind in EXACT else 0.97 <= index.recall <= 1.0
    assert (index.effort == 0) == (index.kind in EXACT)


def test_exact_search_equals_brute_force_in_every_kind(index: Index) -> None:
    scores, positions = index.search(QUERY_BD, 10, exact=True)
    expected, truth = nearest(cosines(index), 10)
    assert scores == pytest.approx(expected, abs=1e-6)
    assert recall(positions, truth) == 1.0
    true_BK = np.take_along_axis(COSINE_BG, positions, axis=1)
    assert scores == pytest.approx(true_BK, abs=rounding(index))


def test_search_has_the_recall_that_was_asked_for(index: Index) -> None:
    scores, positions = index.search(QUERY_BD, 10)
    cosine_BG = cosines(index)
    assert recall(positions, nearest(cosine_BG, 10)[1]) >= (1.0 if index.kind in EXACT else 0.96)
    assert scores == pytest.approx(np.take_along_axis(cosine_BG, positions, axis=1), abs=1e-6)


def test_an_approximate_search_visits_a_part_of_the_gallery(index: Index) -> None:
    assert index.effort < {"flat": 1, "half": 1, "hnsw": 300}.get(index.kind, 40)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", MASKS)
def test_only_allowed_images_are_found_and_those_that_should_be(
    index: Index, name: str, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ivf, "FEW", 50)
    scores, positions = index.search(QUERY_BD, 10, exact=exact, allowed=MASKS[name])
    expected, truth = nearest(cosines(index), 10, MASKS[name])
    there = positions >= 0
    assert MASKS[name][positions[there]].all()
    assert np.array_equal(there, truth >= 0)
    assert np.array_equal(np.isinf(scores), ~there)
    # RaBitQ's codes of an image in 16 numbers are coarse
    few = MASKS[name].sum() < (50 if index.kind == "rabitq" else 200)
    compared = exact or index.kind in EXACT or few
    assert recall(positions, truth) >= (1.0 if compared else 0.96)
    assert scores[:, 0] == pytest.approx(expected[:, 0], abs=1e-6)


def test_k_is_cut_to_the_gallery_and_all_of_it_is_found(index: Index) -> None:
    _, positions = index.search(QUERY_BD[:2], GALLERY + 1)
    assert [sorted(row) for row in positions.tolist()] == [list(range(GALLERY))] * 2


def test_vectors_are_the_features_at_length_one(index: Index) -> None:
    positions = np.array([5, 0, GALLERY - 1, 5])
    off = rounding(index)
    vectors = index.vectors(positions)
    assert vectors == pytest.approx(unit(FEATURES_GD)[positions], abs=off)
    relative = 2**-10 if index.kind in MAPPED else 1e-5
    whole = vectors * index.lengths(positions)[:, None]
    assert whole == pytest.approx(FEATURES_GD[positions], rel=relative)
    assert np.linalg.norm(index.vectors(positions), axis=1) == pytest.approx(1, abs=1e-6)
    assert index.vectors(np.array([], np.int64)).shape == (0, DIM)


def test_moments_are_those_of_all_scores(index: Index) -> None:
    mean_D, covariance_DD = index.moments()
    assert QUERY_BD @ mean_D == pytest.approx(COSINE_BG.mean(axis=1), abs=1e-6)
    variance = np.einsum("bd,de,be->b", QUERY_BD, covariance_DD, QUERY_BD)
    assert variance == pytest.approx(COSINE_BG.var(axis=1), rel=1e-4)


def test_effort_follows_the_queries_that_are_given() -> None:
    settings, near = IndexConfig(kind="ivf", recall=0.98), unit(FEATURES_GD[:200])
    far = unit(np.random.default_rng(4).normal(size=(200, DIM)).astype(np.float32))
    alone = Index.build(FEATURES_GD, settings, queries={"image": near})
    harder = Index.build(FEATURES_GD, settings, queries={"image": near, "text": far})
    assert alone.effort < harder.effort
    assert min(alone.recall, harder.recall) >= 0.97


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_builds_the_same_files(kind: str, tmp_path: Path) -> None:
    settings = IndexConfig.model_validate({"kind": kind, "sample": 50})
    # The turn of RaBitQ is a product of matrices, whose last bits depend on the threads
    numbers = (2, 2) if kind == "rabitq" else (1, 2)
    once, again = (
        Index.build(FEATURES_GD, settings, threads=threads).save(tmp_path) for threads in numbers
    )
    assert once == again


@pytest.mark.parametrize("kind", ["ivf", "sq8", "rabitq"])
def test_centres_are_taken_from_an_index_that_is_alike_and_from_no_other(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    placed: list[int] = []
    structure = {"ivf": ivf.Ivf, "sq8": Sq8, "rabitq": Rabitq}[kind]
    original = structure.trained

    def trained(*given: Any) -> ivf.Ivf:
        placed.append(given[1])
        return original(*given)

    monkeypatch.setattr(structure, "trained", trained)
    settings = IndexConfig.model_validate({"kind": kind, "recall": 0.98, "sample": 200})
    first = Index.build(FEATURES_GD, settings)
    more = Index.build(drawn(GALLERY + 500, 5), settings, like=first)
    assert len(placed) == 1
    assert more.recall >= 0.979
    assert first.size == GALLERY
    Index.build(drawn(3 * GALLERY, 5), settings, like=first)  # too many for so few lists
    Index.build(FEATURES_GD, settings, like=Index.build(FEATURES_GD, IndexConfig(kind="flat")))
    other = (
        np.random.default_rng(6).normal(size=(GALLERY, DIM)).astype(np.float32) ** 3
    )  # features around other centres
    alone, beside = (Index.build(other, settings, like=like) for like in (None, first))
    if kind == "rabitq":  # it compares more candidates again, and then has the recall
        assert beside.recall >= 0.98
    else:
        assert len(placed) == 5
        assert beside.recall == alone.recall


@pytest.mark.parametrize("kind", ["ivf", "hnsw", "sq8", "rabitq"])
def test_copies_of_an_image_do_not_lower_the_recall(kind: str) -> None:
    features = np.repeat(drawn(50, 2), 40, axis=0)
    index = Index.build(features, IndexConfig.model_validate({"kind": kind, "sample": 100}))
    assert index.recall >= 0.99
    assert index.effort < 200


@pytest.mark.parametrize("kind", ["ivf", "sq8", "rabitq"])
def test_a_mask_of_copies_in_one_list_is_searched(kind: str) -> None:
    """Where a list holds more than shall be compared, it is visited nevertheless."""
    copies = np.tile(FEATURES_GD[:1], (15_000, 1))
    features_GD = np.concatenate([np.tile(FEATURES_GD, (15, 1)), copies])
    index = Index.build(features_GD, IndexConfig(kind=kind, recall=0.5, sample=50), threads=1)
    allowed_G = np.arange(len(features_GD)) >= len(features_GD) - len(copies)
    found = index.search(QUERY_BD[:3], 5, allowed=allowed_G)
    assert (found[1] >= len(features_GD) - len(copies)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_one_image_makes_an_index(kind: str) -> None:
    index = Index.build(FEATURES[:1], IndexConfig.model_validate({"kind": kind}))
    scores, positions = index.search(EAST, 10)
    assert (scores.tolist(), positions.tolist()) == ([[1.0]], [[0]])
    assert index.search(EAST, 10, allowed=np.zeros(1, np.bool_))[1].tolist() == [[-1]]


def test_threads_hold_for_the_search() -> None:
    before = faiss.omp_get_max_threads()
    try:
        index = Index.build(FEATURES, IndexConfig())
        index.threads = 1
        index.search(EAST, 1)
        assert faiss.omp_get_max_threads() == 1
    finally:
        faiss.omp_set_num_threads(before)


@pytest.mark.parametrize("name", FILES)
def test_a_tampered_file_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    sha256 = Index.build(FEATURES, IndexConfig()).save(tmp_path)
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / name).write_bytes(data)
    monkeypatch.setattr(faiss, "read_index", lambda *arguments: pytest.fail("it was read"))
    with pytest.raises(WeightsError, match=f"{name} is not the file that was saved"):
        Index.load(tmp_path, sha256)


@pytest.mark.parametrize("name", FILES)
def test_an_absent_file_is_refused(tmp_path: Path, name: str) -> None:
    sha256 = Index.build(FEATURES, IndexConfig()).save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(WeightsError, match=f"{name} cannot be read"):
        Index.load(tmp_path, sha256)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_features_without_a_direction_are_refused(value: float) -> None:
    features = FEATURES.copy()
    features[1] = value
    with pytest.raises(WeightsError, match="1 of 3"):
        Index.build(features, IndexConfig())
