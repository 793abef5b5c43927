"""Pictures of a sweep by Optuna: history, parallel coordinates, importance of the parameters."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any

import matplotlib.pyplot as plt
import optuna
from optuna.trial import TrialState, create_trial

from tune.journal import Record
from tune.space import Space

FEWEST = 4  # measured trials below which importances say nothing


def draw(space: Space, trials: Sequence[Record], metric: str) -> dict[str, bytes]:
    """Name of a figure -> PNG. Importances are left out where too few trials were measured or all are equal."""
    study = _study(space, trials)
    values = {trial.value for trial in study.trials if trial.value is not None}
    if not values:
        return {}
    from optuna.visualization import matplotlib as pictures

    kinds: Mapping[str, Callable[[], Any]] = {
        "history": lambda: pictures.plot_optimization_history(study, target_name=metric),
        "parallel_coordinates": lambda: pictures.plot_parallel_coordinate(study, target_name=metric),
        "importances": lambda: pictures.plot_param_importances(study, target_name=metric),
    }
    enough = len(values) > 1 and sum(trial.value is not None for trial in study.trials) >= FEWEST
    return {f"{name}.png": _png(kind) for name, kind in kinds.items() if enough or name == "history"}


def _study(space: Space, trials: Sequence[Record]) -> optuna.Study:
    """The measured trials as Optuna knows them, with the settings that they really had."""
    study = optuna.create_study(direction="maximize")
    distributions = {name: given.distribution() for name, given in space.ranges.items()}
    for trial in trials:
        if trial["value"] is not None and all(value in space.ranges[n] for n, value in trial["settings"].items()):
            study.add_trial(
                create_trial(
                    state=TrialState.COMPLETE,
                    value=trial["value"],
                    params=trial["settings"],
                    distributions=distributions,
                )
            )
    return study


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
