"""The numbers of a comparison: methods, and what is said of each beside its baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from raycd.compare.answers import Answers
from raycd.compare.statistics import Difference, Spread, holm
from raycd.evaluate import Metric


@dataclass(frozen=True)
class Method:
    """One row: what was trained or computed, and what it answered."""

    name: str
    answers: Answers
    parameters: int = 0
    """Numbers that training changes."""
    epochs: int = 0
    triplets: int = 0
    """Triplets seen in one training, each as often as it was seen."""
    seconds: float = 0.0
    """Mean of its trainings."""
    failed: int = 0
    """Trainings that have failed and are left out."""

    @property
    def is_trained(self) -> bool:
        """Tell whether seeds change its answers."""
        return self.answers.seeds is not None


@dataclass(frozen=True)
class Line:
    """One method under one metric."""

    method: Method
    metric: Metric
    spread: Spread
    baseline: str = ""
    """Whom it is compared with; empty for the baseline itself."""
    difference: Difference | None = None
    """To the baseline."""
    corrected_p: float | None = None
    """Holm's correction for all methods that the table compares under this metric."""


@dataclass(frozen=True)
class Table:
    """Methods side by side: for each a line a metric, in the order of `metrics`."""

    key: str
    """Short, for files: epochs-pseudo."""
    title: str
    metrics: Sequence[Metric]
    lines: Sequence[Sequence[Line]]
    notes: Sequence[str] = field(default_factory=tuple)


def against(
    methods: Sequence[Method], baselines: Mapping[str, Method], metrics: Sequence[Metric]
) -> list[list[Line]]:
    """Return each method's lines, one a metric, beside the baseline that `baselines` names for it.

    A method that is its own baseline, or has none, is not compared.
    """
    columns = [_column(methods, baselines, metric) for metric in metrics]
    return [list(lines) for lines in zip(*columns, strict=True)]


def _column(
    methods: Sequence[Method], baselines: Mapping[str, Method], metric: Metric
) -> list[Line]:
    found: list[Difference | None] = []
    names: list[str] = []
    for method in methods:
        baseline = baselines.get(method.name)
        if baseline is None or baseline is method:
            found.append(None)
            names.append("")
        else:
            found.append(method.answers.minus(baseline.answers, metric))
            names.append(baseline.name)
    corrected = holm([None if one is None else one.p for one in found])
    return [
        Line(method, metric, method.answers.spread(metric), name, difference, p)
        for method, name, difference, p in zip(methods, names, found, corrected, strict=True)
    ]
