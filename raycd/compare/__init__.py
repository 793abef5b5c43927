"""Comparing methods: statistics over seeds and queries, and the tables that show them."""

from raycd.compare.statistics import Difference, Spread, difference, holm, over_seeds, weights

__all__ = ["Difference", "Spread", "difference", "holm", "over_seeds", "weights"]
