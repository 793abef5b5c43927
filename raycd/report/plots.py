"""Curves and histograms as inline SVG in the colours of the page, light or dark.

matplotlib draws in placeholder colours, which are replaced by the page's CSS variables. Nothing
global changes, and the same data gives the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT, FIRST, SECOND = "#010203", "#010204", "#010205", "#010206"
_VARIABLES = {
    INK: "var(--ink)",
    FAINT: "var(--line)",
    FIRST: "var(--first)",
    SECOND: "var(--second)",
}
_SIZE = (5.0, 2.6)  # inches; the page scales it


def loss_curve(title: str, epochs: Sequence[Mapping[str, Any]], best: int | None = None) -> str:
    """Draw the loss of each epoch; epochs on pseudo triplets are separate points."""

    def draw(axes: Axes) -> None:
        original = _points([e for e in epochs if e.get("kind", "original") != "pseudo"], "loss")
        pseudo = _points([e for e in epochs if e.get("kind") == "pseudo"], "loss")
        axes.plot(
            *original,
            color=FIRST,
            marker=_marker(original[0]),
            markersize=3,
            label="original triplets",
        )
        if pseudo[0]:
            axes.plot(
                *pseudo,
                color=SECOND,
                linestyle="none",
                marker="o",
                markersize=3,
                label="pseudo triplets",
            )
            axes.legend(frameon=False, labelcolor=INK, fontsize=8)
        _epochs(axes, best)

    return _svg(title, draw)


def recall_curve(title: str, epochs: Sequence[Mapping[str, Any]], best: int | None = None) -> str:
    """Draw every "recall@k" of the epochs, in per cent; epochs without it are skipped."""
    keys = list(
        dict.fromkeys(key for epoch in epochs for key in epoch if key.startswith("recall@"))
    )

    def draw(axes: Axes) -> None:
        for key, color in zip(keys, [FIRST, SECOND, INK], strict=False):
            x, y = _points(epochs, key)
            axes.plot(
                x,
                [100 * v for v in y],
                color=color,
                marker=_marker(x),
                markersize=3,
                label=key.replace("recall", "R"),
            )
        if keys:
            axes.legend(frameon=False, labelcolor=INK, fontsize=8)
        _epochs(axes, best)

    return _svg(title, draw)


def histogram(title: str, values: NDArray[Any], thresholds: Mapping[str, float]) -> str:
    """Draw the distribution of the finite values, with thresholds as named lines."""
    finite = np.asarray(values, dtype=float).ravel()
    finite = finite[np.isfinite(finite)]

    def draw(axes: Axes) -> None:
        counts, edges = np.histogram(finite, bins=50)
        axes.stairs(counts, edges, fill=True, color=FIRST)
        by_value = sorted(thresholds.items(), key=lambda item: item[1])
        for row, (name, value) in enumerate(by_value):
            axes.axvline(value, color=SECOND, linewidth=1, linestyle=(0, (3, 2)))
            axes.annotate(
                f"{name} {value:g}",
                (value, 1 - 0.07 * row),
                xytext=(-4, 0),
                xycoords=axes.get_xaxis_transform(),
                textcoords="offset points",
                color=INK,
                fontsize=7,
                va="top",
                ha="right",
            )
        axes.set_ylim(0, max(1, counts.max()) * 1.18)

    return _svg(title, draw)


def _points(epochs: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    points = [(int(e["epoch"]), float(e[key])) for e in epochs if e.get(key) is not None]
    return [x for x, _ in points], [y for _, y in points]


def _marker(x: Sequence[int]) -> str:
    return "o" if len(x) <= 30 else ""


def _epochs(axes: Axes, best: int | None) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.set_xlabel("epoch", fontsize=8)
    if best is not None:
        axes.axvline(best, color=INK, linewidth=0.8, linestyle=(0, (1, 2)))


def _svg(title: str, draw: Callable[[Axes], None]) -> str:
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": title,
            "axes.unicode_minus": False,
            "text.usetex": False,
        }
    ):
        figure = Figure(figsize=_SIZE, layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        axes.set_title(title, color=INK, fontsize=9, loc="left", parse_math=False)
        axes.grid(color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
        axes.tick_params(colors=INK, labelsize=8, length=0)
        axes.xaxis.label.set_color(INK)
        draw(axes)
        out = StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return _inline(out.getvalue())


def _inline(svg: str) -> str:
    """Return the <svg> element without metadata and groups' ids, in the page's colours and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)
    svg = re.sub(r'<svg ([^>]*?)(?:width|height)="[^"]*pt"', r"<svg \1", svg, count=1)
    svg = re.sub(r'(?<=<svg )([^>]*?)(?:width|height)="[^"]*pt"', r"\1", svg, count=1)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, variable)
    return svg.strip()
