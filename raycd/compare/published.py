"""The paper's Table 1 and 2 beside ours (published.yaml), each figure with its protocol.

Printed averages are checked: some are not the mean of their row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml

from raycd.compare.lines import Method
from raycd.compare.writing import Grid, named
from raycd.evaluate import AVERAGE, Metric

CATEGORIES = ("dress", "shirt", "toptee")
KS = (10, 50)
PRINTED = 0.05  # Rounding to one decimal, as some rows are printed, moves a mean by so much.


@dataclass(frozen=True)
class Published:
    """A row of Table 1 in per cent."""

    method: str
    protocol: str
    measured_by: str
    figures: Sequence[float]
    """R@10, R@50 of dress, shirt and toptee, then the printed averages."""

    def means(self) -> list[float]:
        """Return the means of the row's own categories at R@10 and R@50."""
        return [sum(self.figures[at:6:2]) / 3 for at in (0, 1)]

    def adds_up(self) -> list[bool]:
        """Tell of each printed average whether it is the mean of its row."""
        pairs = zip(self.means(), self.figures[6:], strict=True)
        return [abs(mean - printed) <= PRINTED + 1e-9 for mean, printed in pairs]


def table1() -> list[Published]:
    """Return the paper's Table 1."""
    return [Published(**row) for row in _read()["table1"]]


def table2() -> dict[str, list[float]]:
    """Return the paper's Table 2: variant -> average R@10 and R@50, per cent."""
    return {row["method"]: row["figures"] for row in _read()["table2"]}


def beside(ours: Sequence[Method], protocol: str) -> Grid:
    """Return the published rows and ours below them; `protocol` is ours.

    The answers have to be of Fashion-IQ's three categories.
    """
    metrics = [Metric(category, k) for category in (*CATEGORIES, AVERAGE) for k in KS]
    head = ["method", "protocol", *(f"{metric.category} R@{metric.k}" for metric in metrics)]
    rows, notes = [], []
    for row in table1():
        texts = [f"{figure:.2f}" for figure in row.figures]
        for at, right in enumerate(row.adds_up()):
            if not right:
                texts[6 + at] += " †"
                notes.append(f"{row.method} R@{KS[at]} {row.means()[at]:.2f}")
        rows.append([f"{row.method} (published)", row.protocol, *texts])
    for method in ours:
        spreads = [method.answers.spread(metric) for metric in metrics]
        texts = [
            f"{100 * spread.mean:.2f}" + (f" ± {100 * spread.sd:.2f}" if spread.sd else "")
            for spread in spreads
        ]
        rows.append([f"{named(method)} (ours)", protocol, *texts])
    return Grid(
        "The paper's Table 1 as it is printed, and ours: mean ± standard deviation over seeds",
        head,
        rows,
        [
            f"† The printed average is not the mean of its row, which is: {', '.join(notes)}.",
            "Published rows have the encoders of their papers, most of them not CLIP's, and "
            "different protocols: they cannot be compared with ours, nor all with each other.",
        ],
    )


def _read() -> Mapping[str, Any]:
    text = files("raycd.compare").joinpath("published.yaml").read_text(encoding="utf-8")
    found: Mapping[str, Any] = yaml.safe_load(text)
    return found
