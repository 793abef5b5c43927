"""Which of both ways the propensities of positions are found by."""

from __future__ import annotations

import pytest

from raycd.errors import DataError
from raycd.feedback.propensity import ENOUGH, estimate
from tests.feedback.logs import session


def test_the_slice_is_taken_where_it_has_enough_clicks_and_as_asked() -> None:
    some = [session("ab", explored=(0, 1), click="a" if n % 3 else "b") for n in range(ENOUGH)]
    assert estimate(some).method == "slice"
    assert estimate(some[1:]).method == "model"
    assert estimate(some[1:], "slice").method == "slice"
    assert estimate(some, "model").method == "model"
    with pytest.raises(DataError, match="there is no click of the randomised slice"):
        estimate([session("ab", click="a")], "slice")
    assert estimate(some, "none") == ("none", None, 0)
    values = estimate(some).values
    assert values is not None
    assert values[0] == 1
    assert 0.4 < values[1] < 0.6
