"""What a sweep leaves: best.yaml, result.json, figures, and the lines that a person reads in the
end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raycd.config import to_yaml
from tune import compare, figures
from tune.finals import Finalist
from tune.journal import RESULT, Journal, Record, ranked, used_pseudo
from tune.space import Space

BEST = "best.yaml"
SHOWN = 10  # best trials in the table


def files(
    space: Space,
    trials: Sequence[Record],
    finalists: Sequence[Finalist],
    result: Mapping[str, Any],
    metric: str,
) -> dict[str, bytes]:
    """best.yaml, which jobs/train.py --config reads, and the figures."""
    winner = finalists[0]
    head = [
        f"# The winner of {len(trials)} trials is {winner.name}: {metric} {100 * winner.value:.2f} on selection.",
        f"# {compare.verdict(result)}.",
        *(f"# {name}: {value}" for name, value in winner.settings.items()),
    ]
    text = "\n".join([*head, to_yaml(space.configured(winner.settings))])
    return {BEST: text.encode(), **figures.draw(space, trials, metric)}


def write(journal: Journal, found: Mapping[str, bytes], result: Mapping[str, Any]) -> None:
    """Into the sweep's folder."""
    for name, data in found.items():
        journal.run.write_bytes(f"figures/{name}" if name.endswith(".png") else name, data)
    journal.run.write_json(RESULT, result)


def told(
    trials: Sequence[Record],
    finalists: Sequence[Finalist],
    result: Mapping[str, Any],
    journal: Journal,
) -> str:
    """The best trials as a table, the finals, the verdict, and where everything is."""
    count = {
        status: sum(trial["status"] == status for trial in trials)
        for status in ("finished", "stopped", "failed")
    }
    rest = {} if result["default_won"] else dict(list(result["metrics"].items())[1:])
    lines = [
        *_table(trials),
        "",
        ", ".join(f"{number} {status}" for status, number in count.items() if number),
        *_untouched(trials),
        "finals, trained whole, on selection: "
        + ", ".join(f"{f.name} {100 * f.value:.2f}%" for f in finalists),
        compare.verdict(result),
        *(
            f"  {name}: {100 * row['default']:.2f} -> {100 * row['winner']:.2f}"
            f" ({100 * row['difference']:+.2f}{compare.interval(row)})"
            for name, row in rest.items()
        ),
        "",
        f"best:    {journal.run.path(BEST)} ({finalists[0].name}; python jobs/train.py --config {BEST})",
        f"sweep:   {journal.run.root}",
    ]
    return "\n".join(lines)


def _untouched(trials: Sequence[Record]) -> list[str]:
    """What is to be said where thresholds could not have changed what a trial gave."""
    measured = ranked(trials)
    without = sum(not used_pseudo(trial) for trial in measured)
    if not without:
        return []
    return [
        f"warning: {without} of {len(measured)} measured trials have trained no epoch of pseudo triplets, so their "
        "thresholds changed nothing and the importances leave them out; more --tune.epochs and --tune.grace than "
        "stage2.k, or --space with a smaller stage2.k, let them"
    ]


def _table(trials: Sequence[Record]) -> list[str]:
    best = ranked(trials)[:SHOWN]
    names = list(best[0]["settings"])
    rows = [["trial", "selection, %", "epochs", *names]]
    rows += [
        [
            str(t["number"]),
            f"{100 * t['value']:.2f}",
            str(len(t["epochs"])),
            *(f"{t['settings'][n]}" for n in names),
        ]
        for t in best
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
