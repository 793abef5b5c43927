"""Pictures of a sweep: history and importance of the parameters by Optuna, and parallel
coordinates.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import optuna
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from optuna.trial import TrialState, create_trial

from tune.journal import Record, used_pseudo
from tune.space import Space

FEWEST = 4  # measured trials below which importances say nothing


def draw(space: Space, trials: Sequence[Record], metric: str) -> dict[str, bytes]:
    """Name of a figure -> PNG. All but the history is left out where too few trials tell something,
    or all are equal.

    Importances are of the trials that have trained on pseudo triplets: to the others thresholds
    meant nothing.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study, touched = (
        _study(space, trials),
        _study(space, [trial for trial in trials if used_pseudo(trial)]),
    )
    from optuna.visualization import matplotlib as pictures

    kinds: Mapping[str, tuple[bool, Callable[[], Any]]] = {
        "history": (
            bool(_values(study)),
            lambda: pictures.plot_optimization_history(study, target_name=metric),
        ),
        "parallel_coordinates": (_tells(study), lambda: _parallel(study, metric)),
        "importances": (
            _tells(touched),
            lambda: pictures.plot_param_importances(touched, target_name=metric),
        ),
    }
    return {f"{name}.png": _png(kind) for name, (wanted, kind) in kinds.items() if wanted}


def _values(study: optuna.Study) -> list[float]:
    return [trial.value for trial in study.trials if trial.value is not None]


def _tells(study: optuna.Study) -> bool:
    """Whether enough trials were measured, and not all the same."""
    values = _values(study)
    return len(values) >= FEWEST and len(set(values)) > 1


def _study(space: Space, trials: Sequence[Record]) -> optuna.Study:
    """The measured trials as Optuna knows them, with the settings that they really had."""
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
    """A line a trial over one axis a setting, the metric last. Its colour is its value; the better
    ones lie in front.

    Optuna's own picture draws the lines over the numbers and the worst of them in white.
    """
    trials = sorted(
        (trial for trial in study.trials if trial.value is not None), key=lambda trial: trial.value
    )
    names = list(trials[0].params)
    columns = {name: [trial.params[name] for trial in trials] for name in names} | {
        metric: [t.value for t in trials]
    }
    figure, axes = plt.subplots()
    axes.set_title("Parallel coordinates: a line is a trial", pad=36)
    shades = ScalarMappable(Normalize(trials[0].value, trials[-1].value), "viridis")
    figure.colorbar(shades, ax=axes, label=metric, pad=0.08)
    heights = []
    for place, column in enumerate(columns.values()):
        height, lowest, highest = _axis(column)
        heights.append(height)
        axes.axvline(place, color="0.6", linewidth=1)
        axes.text(place, 1.03, highest, ha="center", va="bottom")
        axes.text(place, -0.03, lowest, ha="center", va="top")
    ranks = np.linspace(0, 1, len(trials))
    for line, trial, rank in zip(zip(*heights, strict=True), trials, ranks, strict=True):
        axes.plot(
            range(len(columns)),
            line,
            color=shades.to_rgba(trial.value),
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
    """Places of the values on an axis from 0 to 1, and what stands at its two ends."""
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
