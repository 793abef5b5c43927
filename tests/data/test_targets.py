"""Triplets of several right targets, some of whose images are missing."""

import numpy as np
import pyarrow as pa

from raycd.data import targets
from raycd.data.schema import TRIPLET


def triplets(*rows: tuple[str, str | None, list[str] | None]) -> pa.Table:
    """Return a table; each row is reference, target, further targets."""
    made = [
        {
            **{"triplet_id": str(n), "category": "all", "split": "train", "captions": ["is red"]},
            **{"reference": reference, "target": target, "further_targets": further},
        }
        for n, (reference, target, further) in enumerate(rows)
    ]
    return pa.Table.from_pylist(made, schema=TRIPLET)


def test_the_first_target_that_can_be_read_is_trained_on() -> None:
    table = triplets(
        ("a", "b", ["c", "d"]),
        ("a", "x", ["c", "y", "d"]),
        ("a", "x", ["y"]),
        ("x", "b", ["c"]),
        ("a", "b", None),
        ("a", None, None),
    )
    found = targets.readable(table, {"a", "b", "c", "d"})
    assert found.schema.equals(TRIPLET)
    assert found["triplet_id"].to_pylist() == ["0", "1", "4"]
    assert found["target"].to_pylist() == ["b", "c", "b"]
    assert found["further_targets"].to_pylist() == [["c", "d"], ["d"], None]


def test_numbers_of_all_targets_are_padded_and_single_targets_have_none() -> None:
    rows = triplets(("a", "b", ["c", "z"]), ("a", "b", None), ("a", "c", ["b"])).to_pylist()
    found = targets.padded(rows, {"b": 7, "c": 8})
    assert found is not None
    assert found.dtype == np.int64
    assert found.tolist() == [[7, 8, -1], [-1, -1, -1], [8, 7, -1]]
    assert targets.padded(rows[1:2], {"b": 7}) is None
