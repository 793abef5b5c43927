import hashlib
from pathlib import Path

import faiss
import numpy as np
import pytest

from raycd.errors import WeightsError
from raycd.index import FlatIndex

FEATURES = np.array([[2.0, 0.0], [0.0, 5.0], [3.0, 4.0]], np.float32)
EAST = np.array([[1.0, 0.0]], np.float32)


def test_search_ranks_by_cosine_whatever_the_lengths() -> None:
    scores, positions = FlatIndex.build(FEATURES).search(EAST, 3)
    assert positions.tolist() == [[0, 2, 1]]
    assert scores == pytest.approx(np.array([[1.0, 0.6, 0.0]]), abs=1e-6)


def test_k_is_cut_to_the_size_of_the_gallery() -> None:
    index = FlatIndex.build(FEATURES, threads=1)
    assert index.search(EAST, 100)[1].shape == (1, 3)
    assert (index.kind, index.size, index.dim) == ("flat", 3, 2)


def test_search_equals_the_plain_matrix_product() -> None:
    rng = np.random.default_rng(0)
    gallery, queries = (rng.normal(size=(n, 16)).astype(np.float32) for n in (300, 20))
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    scores, positions = FlatIndex.build(gallery, threads=2).search(queries, 10)
    expected = queries @ gallery.T
    assert scores == pytest.approx(-np.sort(-expected, axis=1)[:, :10], abs=1e-5)
    assert np.take_along_axis(expected, positions, axis=1) == pytest.approx(scores, abs=1e-5)


def test_threads_hold_for_the_search() -> None:
    before = faiss.omp_get_max_threads()
    try:
        FlatIndex.build(FEATURES, threads=1).search(EAST, 1)
        assert faiss.omp_get_max_threads() == 1
    finally:
        faiss.omp_set_num_threads(before)


def test_saved_and_loaded_it_answers_the_same(tmp_path: Path) -> None:
    index = FlatIndex.build(FEATURES)
    sha256 = index.save(tmp_path / "index.faiss")
    assert sha256 == hashlib.sha256((tmp_path / "index.faiss").read_bytes()).hexdigest()
    loaded = FlatIndex.load(tmp_path / "index.faiss", sha256)
    for ours, theirs in zip(loaded.search(EAST, 3), index.search(EAST, 3), strict=True):
        assert np.array_equal(ours, theirs)


def test_a_tampered_file_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "index.faiss"
    sha256 = FlatIndex.build(FEATURES).save(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    monkeypatch.setattr(faiss, "deserialize_index", lambda data: pytest.fail("it was read"))
    with pytest.raises(WeightsError, match="not the file that was saved"):
        FlatIndex.load(path, sha256)


def test_an_absent_file_and_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be read"):
        FlatIndex.load(tmp_path / "index.faiss", "")
    data = faiss.serialize_index(faiss.IndexHNSWFlat(2, 4)).tobytes()
    (tmp_path / "index.faiss").write_bytes(data)
    with pytest.raises(WeightsError, match="no flat index"):
        FlatIndex.load(tmp_path / "index.faiss", hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_features_without_a_direction_are_refused(value: float) -> None:
    features = FEATURES.copy()
    features[1] = value
    with pytest.raises(WeightsError, match="1 of 3"):
        FlatIndex.build(features)
