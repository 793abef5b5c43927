from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raycd import features
from raycd.features import READABLE

VECTORS = np.array([[1, 2, 3], [0, 0, 0], [4.5, 5, 6], [7, 8, -9]], np.float32)
KEYS, STATUS = ["b", "broken", "a", "Is red and long"], [READABLE, "truncated", READABLE, READABLE]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    features.write(tmp_path / "inner" / "images.parquet", features.to_table(KEYS, STATUS, VECTORS))
    return tmp_path / "inner" / "images.parquet"


def test_features_come_back_in_the_order_of_the_file_without_the_broken(path: Path) -> None:
    found, report = features.read(path)
    assert list(found.rows) == ["b", "a", "Is red and long"]
    assert found.values.tolist() == [[1, 2, 3], [4.5, 5, 6], [7, 8, -9]]
    assert report.reasons == {"broken": "truncated"}


def test_another_order_may_be_asked_for_and_lacks_what_is_not_there(path: Path) -> None:
    found, report = features.read(path, ["a", "absent", "broken", "b"])
    assert found.take(["b", "a"]).tolist() == [[1, 2, 3], [4.5, 5, 6]]
    assert list(found.rows) == ["a", "b"]
    assert report.reasons == {"broken": "truncated"}


def test_the_vectors_type_carries_their_size(path: Path) -> None:
    schema = pq.read_schema(path)
    assert schema.names == ["key", "status", "feature"]
    assert schema.field("feature").type == pa.list_(pa.float32(), 3)


def test_a_table_of_many_blocks_is_read_whole(tmp_path: Path) -> None:
    parts = [
        features.to_table([f"{i}"], [READABLE], np.full((1, 2), i, np.float64)) for i in range(5)
    ]
    features.write(tmp_path / "x.parquet", pa.concat_tables(parts).slice(1))
    assert features.read(tmp_path / "x.parquet")[0].values.tolist() == [
        [1, 1],
        [2, 2],
        [3, 3],
        [4, 4],
    ]


def test_no_rows_are_no_features(tmp_path: Path) -> None:
    features.write(tmp_path / "x.parquet", features.to_table([], [], np.zeros((0, 3), np.float32)))
    found, report = features.read(tmp_path / "x.parquet")
    assert found.values.shape == (0, 3)
    assert len(report) == 0


def test_nothing_readable_is_no_features(tmp_path: Path) -> None:
    features.write(
        tmp_path / "x.parquet", features.to_table(["a"], ["missing"], np.zeros((1, 3), np.float32))
    )
    found, report = features.read(tmp_path / "x.parquet")
    assert found.values.shape == (0, 3)
    assert report.counts() == {"missing": 1}
