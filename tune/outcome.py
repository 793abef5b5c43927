"""What a sweep leaves: best.yaml, result.json, figures, and the lines that a person reads.

The figures are Optuna's history and importance of the parameters, and our parallel coordinates.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import optuna
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from optuna.trial import TrialState, create_trial

from raycd.config import flatten, to_yaml
from raycd.data.folder import is_local
from raycd.errors import called
from raycd.redact import has_password
from tune.finals import Finalist, interval, verdict
from tune.journal import CUT_SHORT, ENDED, RESULT, Journal, Record, ranked, used_pseudo
from tune.space import Space

BEST = "best.yaml"
SHOWN = 10  # best trials in the table
FEWEST = 4  # measured trials below which importances say nothing


def files(
    space: Space,
    trials: Sequence[Record],
    finalists: Sequence[Finalist],
    result: Mapping[str, Any],
    metric: str,
) -> dict[str, bytes]:
    """Return best.yaml, which jobs/train.py --config reads, and the figures."""
    winner = finalists[0]
    config = space.configured(winner.settings)
    secret = [name for name, value in flatten(config).items() if has_password(str(value))]
    head = [
        f"# The winner of {len(trials)} trials is {winner.name}: "
        f"{metric} {100 * winner.value:.2f} on selection.",
        f"# {verdict(result)}.",
        *(f"# {name}: {value}" for name, value in winner.settings.items()),
        *(
            f"# {name} has a password and is not here: leave it in the environment"
            for name in secret
        ),
    ]
    text = "\n".join([*head, to_yaml(config, without=secret)])
    return {BEST: text.encode(), **draw(space, trials, metric)}


def write(journal: Journal, found: Mapping[str, bytes], result: Mapping[str, Any]) -> None:
    """Write the files and the result into the sweep's folder."""
    for name, data in found.items():
        journal.run.write_bytes(f"figures/{name}" if name.endswith(".png") else name, data)
    journal.run.write_json(RESULT, result)


def summary(
    trials: Sequence[Record],
    finalists: Sequence[Finalist],
    result: Mapping[str, Any],
    journal: Journal,
) -> str:
    """Return the best trials as a table, the finals, the verdict, and where everything is."""
    count = Counter(trial["status"] for trial in trials)
    rest = {} if result["default_won"] else dict(list(result["metrics"].items())[1:])
    lines = [
        *_table(trials),
        "",
        ", ".join(f"{count[status]} {status}" for status in ENDED if count[status]),
        *_untouched(trials),
        *_cut_short(trials),
        "finals, trained whole, on selection: "
        + ", ".join(f"{f.name} {100 * f.value:.2f}%" for f in finalists),
        verdict(result),
        *(
            f"  {name}: {100 * row['default']:.2f} -> {100 * row['winner']:.2f}"
            f" ({100 * row['difference']:+.2f}{interval(row)})"
            for name, row in rest.items()
        ),
        "",
        f"best:    {journal.run.path(BEST)} "
        f"({finalists[0].name}; {called('jobs/train.py')} --config {_readable(journal)})",
        f"sweep:   {journal.run.root}",
    ]
    return "\n".join(lines)


def _readable(journal: Journal) -> str:
    path = journal.run.path(BEST)
    return path if is_local(path) else "COPY, a copy of that on this machine"


def _untouched(trials: Sequence[Record]) -> list[str]:
    """Return a warning where thresholds could not have changed what some trials gave."""
    measured = ranked(trials)
    without = sum(not used_pseudo(trial) for trial in measured)
    if not without:
        return []
    return [
        f"warning: {without} of {len(measured)} measured trials have trained no epoch of pseudo "
        "triplets, so their thresholds changed nothing and the importances leave them out; "
        "more --tune.epochs and --tune.grace than stage2.k, or --space with a smaller stage2.k, "
        "let them"
    ]


def _cut_short(trials: Sequence[Record]) -> list[str]:
    """Return a warning where eq. 9 would have found more substitutes than the tables have."""
    counts = [trial[CUT_SHORT] for trial in ranked(trials) if trial.get(CUT_SHORT)]
    if not counts:
        return []
    return [
        f"warning: in {len(counts)} measured trials up to {max(counts):,} images have fewer than "
        "mine.s_max substitutes only because mine.neighbours are too few: more of them (mines "
        "again) would give those trials other pseudo triplets"
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


def draw(space: Space, trials: Sequence[Record], metric: str) -> dict[str, bytes]:
    """Return name -> PNG; only the history where too few trials were measured, or all are equal.

    Importances are of the trials that have trained on pseudo triplets: to the others thresholds
    meant nothing.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = _study(space, trials)
    touched = _study(space, [trial for trial in trials if used_pseudo(trial)])
    from optuna.visualization import matplotlib as pictures

    kinds: Mapping[str, tuple[bool, Callable[[], Any]]] = {
        "history": (
            bool(_values(study)),
            lambda: pictures.plot_optimization_history(study, target_name=metric),
        ),
        "parallel_coordinates": (_is_telling(study), lambda: _parallel(study, metric)),
        "importances": (
            _is_telling(touched),
            lambda: pictures.plot_param_importances(touched, target_name=metric),
        ),
    }
    return {f"{name}.png": _png(kind) for name, (wanted, kind) in kinds.items() if wanted}


def _values(study: optuna.Study) -> list[float]:
    return [trial.value for trial in study.trials if trial.value is not None]


def _is_telling(study: optuna.Study) -> bool:
    """Tell whether enough trials were measured, and not all the same."""
    values = _values(study)
    return len(values) >= FEWEST and len(set(values)) > 1


def _study(space: Space, trials: Sequence[Record]) -> optuna.Study:
    """Return the measured trials as Optuna knows them, with the settings that they really had."""
    study = optuna.create_study(direction="maximize")
    distributions = {name: given.distribution() for name, given in space.ranges.items()}
    for trial in trials:
        if trial["value"] is not None and space.holds(trial["settings"]):
            study.add_trial(
                create_trial(
                    state=TrialState.COMPLETE,
                    value=trial["value"],
                    params=trial["settings"],
                    distributions=distributions,
                )
            )
        else:  # keeps its number
            study.add_trial(create_trial(state=TrialState.FAIL))
    return study


def _parallel(study: optuna.Study, metric: str) -> Any:
    """Draw a line for each trial over an axis for each setting, the metric last; the best in front.

    Optuna's own picture draws the lines over the numbers and the worst of them in white.
    """
    pairs = [(value, trial.params) for trial in study.trials if (value := trial.value) is not None]
    pairs.sort(key=lambda pair: pair[0])
    values, settings = [value for value, _ in pairs], [params for _, params in pairs]
    columns: dict[str, list[Any]] = {name: [row[name] for row in settings] for name in settings[0]}
    columns[metric] = values
    figure, axes = plt.subplots()
    axes.set_title("Parallel coordinates: a line is a trial", pad=36)
    shades = ScalarMappable(Normalize(values[0], values[-1]), "viridis")
    figure.colorbar(shades, ax=axes, label=metric, pad=0.08)
    heights = []
    for x, column in enumerate(columns.values()):
        height, lowest, highest = _axis(column)
        heights.append(height)
        axes.axvline(x, color="0.6", linewidth=1)
        axes.text(x, 1.03, highest, ha="center", va="bottom")
        axes.text(x, -0.03, lowest, ha="center", va="top")
    ranks = np.linspace(0, 1, len(values))
    for line, value, rank in zip(zip(*heights, strict=True), values, ranks, strict=True):
        axes.plot(
            range(len(columns)),
            line,
            color=shades.to_rgba(np.asarray(value)),
            linewidth=1 + 1.5 * rank,
            alpha=0.85,
        )
    axes.set_xticks(
        range(len(columns)), [name.replace(".", ".\n") for name in columns]
    )  # side by side
    axes.tick_params(axis="x", pad=18, length=0)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return axes


def _axis(column: Sequence[Any]) -> tuple[list[float], str, str]:
    """Return the values' heights on an axis from 0 to 1, and what stands at its two ends."""
    if isinstance(column[0], str | bool):
        words = sorted(set(column), key=str)
        return (
            [words.index(value) / max(1, len(words) - 1) for value in column],
            str(words[0]),
            str(words[-1]),
        )
    low, high = min(column), max(column)
    return [(value - low) / ((high - low) or 1) for value in column], f"{low:.4g}", f"{high:.4g}"


def _png(kind: Callable[[], Any]) -> bytes:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        with plt.rc_context({"backend": "Agg"}):
            axes = kind()
            figure = axes.figure
            figure.set_size_inches(9, 5)
            out = BytesIO()
            figure.savefig(out, format="png", dpi=110, bbox_inches="tight")
            plt.close(figure)
    return out.getvalue()
