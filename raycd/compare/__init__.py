"""Comparing methods: statistics over seeds and queries, and the tables that show them."""

from raycd.compare.answers import Answers
from raycd.compare.statistics import Difference, Spread, difference, holm, over_seeds, weights

__all__ = ["Answers", "Difference", "Spread", "difference", "holm", "over_seeds", "weights"]
