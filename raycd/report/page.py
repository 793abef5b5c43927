"""The report of a run: plain data in, one self-contained HTML file out.

    html = render(Report(run="demo", metrics=metrics, ...))

The file needs no script, no network and no second file: images and curves are inside. The same data
gives the same bytes. Texts of a data set (captions, ids) are escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jinja2
from numpy.typing import NDArray

from raycd.progress import duration
from raycd.redact import without_passwords
from raycd.report import funnel, pictures, plots, table
from raycd.report.pictures import Picture

SELECTED_BY = {
    "selection": "the best recall on triplets held out from train (never trained on)",
    "val": "the best recall on val itself, as published work does: these numbers are optimistic",
    "last": "nothing: the last epoch was taken",
}
MEASURED_ON = {"selection": " on the held-out triplets", "val": " on val"}
PROTOCOLS = {
    "original": "the gallery is the published split; the reference image stays in it",
    "original-masked": "the gallery is the published split; "
    "a query's own reference image is taken out",
    "val": "the gallery has only images that occur in the queries, as references or as targets; "
    "a query's own reference image is taken out",
}


@dataclass(frozen=True)
class Curve:
    """The epochs of a training stage."""

    stage: str  # e.g. "stage1"
    select_on: str  # "selection", "val" or "last"
    epochs: Sequence[Mapping[str, Any]]
    """{"epoch", "loss", "seconds", "kind": "original" or "pseudo", "recall@10": 0 to 1} each."""
    best_epoch: int | None = None  # whose checkpoint was taken

    @property
    def measured(self) -> bool:
        """Return whether any epoch has a recall."""
        return any(key.startswith("recall@") for epoch in self.epochs for key in epoch)


@dataclass(frozen=True)
class Histogram:
    """The distribution of a quantity of the mined tables."""

    title: str
    values: NDArray[Any]
    thresholds: Mapping[str, float] = field(default_factory=dict)  # e.g. {"eps_low": 0.9}


GROUPS = {
    "good": ("Good", "Kept, and far from every threshold."),
    "borderline": (
        "Borderline",
        "Kept, and nearest to alpha, eps_low or eps_high. "
        "Where these look wrong, make that threshold stricter.",
    ),
    "refused": (
        "Just refused",
        "Similar enough and within s_max, but with a score just below alpha. "
        "Where these look right, lower alpha.",
    ),
}
SIDES = {
    "alpha": ("score", "above"),
    "eps_low": ("similarity", "above"),
    "eps_high": ("similarity", "below"),
}


@dataclass(frozen=True)
class PseudoExample:
    """A candidate, kept or refused, with the image that it replaces."""

    text: str
    reference: Picture
    target: Picture
    replaced: Picture
    side: str  # "reference" or "target"
    similarity: float  # of replaced and replacement
    score: float  # stage 1's matching score
    group: str  # one of GROUPS
    near: str  # the nearest threshold: one of SIDES
    distance: float  # from it, a cosine

    @property
    def margin(self) -> str:
        """Return how near it is to its threshold, e.g. "score 0.0004 above alpha"."""
        what, where = SIDES[self.near]
        where = "below" if self.group == "refused" else where
        if not self.distance:
            return f"{what} exactly {self.near}"
        return f"{what} {_short(self.distance)} {where} {self.near}"


@dataclass(frozen=True)
class ComposedExample:
    """A triplet that was composed from attributes."""

    text: str
    reference: Picture
    target: Picture
    changes: Sequence[str]  # "colour: black -> red"
    similarity: float  # of reference and target


@dataclass(frozen=True)
class ShownResult:
    """A retrieved image."""

    image: Picture
    image_id: str
    score: float
    is_target: bool = False


@dataclass(frozen=True)
class ShownQuery:
    """A query with its results (paper, Fig. 4)."""

    reference: Picture
    text: str
    results: Sequence[ShownResult]  # best first; the first five are shown
    rank: int | None = None  # of the target, from 1
    category: str = ""
    target: Picture = None  # shown apart where it is not among the first five

    @property
    def apart(self) -> bool:
        """Return whether the target has to be shown apart."""
        return self.target is not None and not any(result.is_target for result in self.results[:5])


@dataclass(frozen=True)
class Sizes:
    """What a recall was measured on: the number of queries, and the size of each gallery."""

    queries: int
    galleries: Sequence[int]

    def __str__(self) -> str:
        least, most = min(self.galleries, default=0), max(self.galleries, default=0)
        images = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        return f"{self.queries:,} queries in galleries of {images} images"


@dataclass(frozen=True)
class Report:
    """Everything that the page shows. Sections without content are left out."""

    run: str
    metrics: Mapping[str, Any]  # the content of metrics.json
    curves: Sequence[Curve] = ()
    composing: Mapping[str, Any] = field(default_factory=dict)  # counts of raycd.compose
    changes: Mapping[str, int] = field(default_factory=dict)  # triplets that change each attribute
    composed: Sequence[ComposedExample] = ()
    mining: Mapping[str, Any] = field(default_factory=dict)  # raycd.mine.Counts
    thresholds: str = ""  # as cosines, where they were given as quantiles
    histograms: Sequence[Histogram] = ()
    pseudo: Sequence[PseudoExample] = ()
    queries: Sequence[ShownQuery] = ()
    missing: Mapping[str, Any] = field(default_factory=dict)  # ImageReport.to_dict()
    warnings: Sequence[str] = ()
    sizes: Mapping[str, Sizes] = field(default_factory=dict)  # by what recall was measured on
    caches: Sequence[str] = ()  # what the head needs beside features: how many, and the bytes
    config: str = ""  # YAML
    versions: Mapping[str, str] = field(default_factory=dict)  # {"raycd": "0.1.0", "torch": ...}


def render(report: Report) -> str:
    """Return the page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("raycd.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["duration"] = duration
    environment.globals.update(picture=pictures.data_uri, figure=_figure)
    shown = [
        image
        for query in report.queries
        for image in (query.reference, *(r.image for r in query.results))
    ]
    return environment.get_template("report.html.j2").render(
        report=report,
        metrics=report.metrics,
        recall=table.recall_cells(report.metrics),
        gains=table.gains(report.metrics),
        verdicts=table.verdicts(report.metrics),
        funnel=funnel.funnel(report.mining),
        mined=funnel.facts(report.mining),
        counts=funnel.leaves(report.metrics.get("counts") or {}),
        seconds=_seconds(report.metrics.get("seconds") or {}),
        config=without_passwords(report.config),
        ratio=pictures.ratio(
            [
                *shown,
                *(example.reference for example in report.pseudo),
                *(example.reference for example in report.composed),
            ]
        ),
        groups=_groups(report.pseudo),
        labels=table.LABELS,
        protocols=PROTOCOLS,
        selected_by=SELECTED_BY,
    )


def _groups(examples: Sequence[PseudoExample]) -> list[tuple[str, str, list[PseudoExample]]]:
    """Return (heading, sentence, examples) of each group that has any."""
    groups = [
        (*GROUPS[name], [example for example in examples if example.group == name])
        for name in GROUPS
    ]
    return [group for group in groups if group[2]]


def _figure(kind: str, item: Curve | Histogram) -> str:
    """Return an inline SVG. The template trusts it: matplotlib has escaped its texts."""
    if isinstance(item, Histogram):
        return plots.histogram(item.title, item.values, item.thresholds)
    if kind == "loss":
        return plots.loss_curve(f"{item.stage}: loss", item.epochs, item.best_epoch)
    title = f"{item.stage}: recall{MEASURED_ON.get(item.select_on, '')}, %"
    return plots.recall_curve(title, item.epochs, item.best_epoch)


def _short(distance: float) -> str:
    """Return a distance with two significant digits, as 3 to 6 decimals."""
    decimals = next((n for n in (3, 4, 5) if distance >= 10 ** (1 - n)), 6)
    return f"{distance:.{decimals}f}"


def _seconds(seconds: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """Return (stage, seconds, share of the longest), in the order of the pipeline."""
    longest = max((float(value) for value in seconds.values()), default=0.0) or 1.0
    return [(stage, float(value), float(value) / longest) for stage, value in seconds.items()]
