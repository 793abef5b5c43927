"""Simulated users: whom they look for, and what they click."""

from __future__ import annotations

import numpy as np
import pytest

from raycd.feedback.users import Habits, coded, pairs


def test_clicks_fall_with_the_position_and_with_what_differs() -> None:
    rng, habits = np.random.default_rng(0), Habits(bias=0.5, clicks=(0.8, 0.2))
    differing_K = np.array([0, 1, 5, 0])
    rate_K = np.mean([habits.clicked(rng, differing_K) for _ in range(20_000)], axis=0)
    expected = np.array([0.8, 0.2, 0.2, 0.8]) / np.sqrt([1, 2, 3, 4])
    assert rate_K == pytest.approx(expected, abs=0.015)


def test_pairs_differ_in_one_to_three_attributes_and_an_absent_one_is_a_value() -> None:
    images = [
        {"colour": "blue", "neck": "v", "fit": "slim", "belt": "yes"},
        {"colour": "blue", "neck": "v", "fit": "slim"},
        {"colour": "red", "neck": "round", "fit": "loose", "belt": "no"},
        {"colour": "blue", "neck": "v", "fit": "slim", "belt": "yes"},
    ]
    found = pairs(coded(images), np.random.default_rng(0)).tolist()
    assert sorted(found) == [[0, 1], [1, 0], [1, 3], [3, 1]]
    assert sorted(pairs(coded(images), np.random.default_rng(0), most=4).tolist()) != sorted(found)
