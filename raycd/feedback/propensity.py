"""The propensities of positions: measured where there is a randomised slice, else estimated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from raycd.errors import DataError
from raycd.feedback import examination, explore
from raycd.feedback.records import LoggedSession

How = Literal["auto", "slice", "model", "none"]
ENOUGH = 200  # clicks of the slice from which on it is believed


class Propensity(NamedTuple):
    """What is known of how much positions are looked at."""

    method: Literal["slice", "model", "none"]
    values: list[float] | None
    """Of each position, the first being 1; None: no correction."""
    clicks: int
    """Clicks that they were found from."""


def estimate(found: Sequence[LoggedSession], how: How = "auto") -> Propensity:
    """Return the propensities of sessions.

    Args:
        how: auto takes the slice where it has ENOUGH clicks, else the examination model.

    Raises:
        DataError: The slice is asked for, and has no clicks.
    """
    if how == "none":
        return Propensity("none", None, 0)
    clicks_KK = explore.clicks(found)
    if how == "slice" and not clicks_KK.any():
        raise DataError(
            "there is no click of the randomised slice",
            got=f"{len(found):,} searches",
            expected="searches whose results the service has exchanged at random",
            do="start the service with --explore 0.1, or give --correct model",
        )
    if how == "slice" or (how == "auto" and clicks_KK.sum() >= ENOUGH):
        return Propensity("slice", explore.propensities(clicks_KK).tolist(), int(clicks_KK.sum()))
    shown_KG, clicked_KG = examination.shown(found)
    values = examination.propensities(shown_KG, clicked_KG).tolist()
    return Propensity("model", values, int(clicked_KG.sum()))
