"""The tables of a comparison as Markdown, LaTeX (booktabs) and CSV.

Markdown and LaTeX have per cent, as tables do; CSV has fractions, as files do, one line for each
method and metric.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

from raycd.compare.lines import Line, Method, Table
from raycd.compare.statistics import Difference, Spread
from raycd.evaluate import AVERAGE, Metric

NONE = "–"
COLUMNS = (
    *("table", "method", "metric", "seeds", "queries", "mean", "sd", "low", "high", "baseline"),
    *("difference", "difference_low", "difference_high", "p", "p_holm"),
    *("parameters", "epochs", "triplets_seen", "seconds"),
)
_LATEX = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "±": r"$\pm$", "–": "--", "†": r"\dag{}"}
_LATEX |= {"\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "^": r"\^{}", "~": r"\~{}"}
_LATEX |= {"Δ": r"$\Delta$", "$": r"\$", "×": r"$\times$", "−": "$-$"}


@dataclass(frozen=True)
class Grid:
    """A table as texts: a title, a head, rows and notes below them."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default_factory=tuple)

    def markdown(self) -> str:
        """Return it in Markdown, the first column to the left and the others to the right."""
        lines = [list(self.head), *map(list, self.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.head))]
        widths = [max(3, width) for width in widths]
        rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        texts = [
            "| " + " | ".join(_aligned(line, widths)) + " |"
            for line in (lines[0], rule, *lines[1:])
        ]
        return "\n".join([f"**{self.title}**", "", *texts, *(f"\n{note}" for note in self.notes)])

    def latex(self) -> str:
        """Return it as a LaTeX table of the package booktabs."""
        columns = "l" + "r" * (len(self.head) - 1)
        rows = [" & ".join(map(_escaped, row)) + r" \\" for row in self.rows]
        return "\n".join(
            [
                r"\begin{table}",
                r"\centering",
                rf"\caption{{{_escaped(' '.join([self.title + '.', *self.notes]))}}}",
                rf"\begin{{tabular}}{{{columns}}}",
                r"\toprule",
                " & ".join(map(_escaped, self.head)) + r" \\",
                r"\midrule",
                *rows,
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
            ]
        )


def grid(table: Table, *, costs: bool = True) -> Grid:
    """Return a table's texts, of the averages over categories; the CSV has the categories, too.

    Its last columns are what each training cost, where these `costs` are wanted.
    """
    names = [_short(metric) for metric in table.metrics if metric.category == AVERAGE]
    head = ["method", *names]
    for name in names:
        head += [f"Δ {name}", "p"]
    if costs:
        head += ["parameters", "epochs", "triplets seen", "training, s"]
    rows = []
    for all_lines in table.lines:
        method = all_lines[0].method
        lines = [line for line in all_lines if line.metric.category == AVERAGE]
        row = [named(method), *(spread_text(line.spread) for line in lines)]
        for line in lines:
            row += [difference_text(line.difference), p_text(line.corrected_p)]
        if costs:
            trained = [f"{method.epochs:,}", f"{method.triplets:,}", f"{method.seconds:.1f}"]
            row += [f"{method.parameters:,}", *(trained if method.is_trained else [NONE] * 3)]
        rows.append(row)
    return Grid(table.title, head, rows, table.notes)


def named(method: Method) -> str:
    """Return a method's name, with the number of its trainings where some have failed."""
    if not method.failed:
        return method.name
    count = len(method.answers.seeds or ())
    return f"{method.name} ({count} seed{'s' * (count != 1)})"


def csv_text(tables: Sequence[Table]) -> str:
    """Return all lines of all tables."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for table in tables:
        writer.writerows(_record(table, line) for lines in table.lines for line in lines)
    return out.getvalue()


def spread_text(spread: Spread) -> str:
    """Return 62.67 ± 0.21 [62.41, 62.93]; without what one seed does not give."""
    text = f"{100 * spread.mean:.2f}"
    if spread.low is None or spread.high is None or spread.sd is None:
        return text
    return f"{text} ± {100 * spread.sd:.2f} [{100 * spread.low:.2f}, {100 * spread.high:.2f}]"


def difference_text(difference: Difference | None) -> str:
    """Return +2.74 [+2.11, +3.38]; a dash where nothing was compared."""
    if difference is None:
        return NONE
    text = f"{100 * difference.mean:+.2f}"
    if difference.low is None or difference.high is None:
        return text
    return f"{text} [{100 * difference.low:+.2f}, {100 * difference.high:+.2f}]"


def p_text(p: float | None) -> str:
    """Return a probability with three decimals; a dash where there is none."""
    if p is None:
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _short(metric: Metric) -> str:
    return str(metric).replace("recall@", "R@")


def _record(table: Table, line: Line) -> dict[str, object]:
    method, difference, own = line.method, line.difference, line.metric.category
    values: dict[str, object] = {
        "table": table.key,
        "method": method.name,
        "metric": str(line.metric),
        "seeds": len(method.answers.seeds or ()),
        "queries": sum(own in (AVERAGE, one) for one in method.answers.categories),
        "mean": line.spread.mean,
        "sd": line.spread.sd,
        "low": line.spread.low,
        "high": line.spread.high,
        "baseline": line.baseline,
        "p_holm": line.corrected_p,
        "parameters": method.parameters,
        "epochs": method.epochs,
        "triplets_seen": method.triplets,
        "seconds": round(method.seconds, 3),
    }
    if difference is not None:
        values |= {"difference": difference.mean, "p": difference.p}
        values |= {"difference_low": difference.low, "difference_high": difference.high}
    return {name: "" if value is None else value for name, value in values.items()}


def _aligned(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        text.ljust(width) if column == 0 else text.rjust(width)
        for column, (text, width) in enumerate(zip(line, widths, strict=True))
    ]


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text).replace("<", r"$<$")
