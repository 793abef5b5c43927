"""The MLflow record of a sweep: a run for the sweep, a child run for each trial that has ended."""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raycd import progress
from raycd.errors import TrackingError
from raycd.runtime.record.child_runs import ChildRuns
from raycd.runtime.record.mlflow_store import PROBE, limited
from raycd.runtime.record.tracking import Tracker
from tune.journal import Journal, Record, best

STATUS = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}


class SweepRecord(ChildRuns):
    """Hands trials in as they end.

    Args:
        tracker: The sweep's run.
        journal: Where it is noted which trials MLflow has.
        metric: What trials are judged by.
    """

    def __init__(self, tracker: Tracker, journal: Journal, metric: str) -> None:
        super().__init__(tracker, "trials", journal.run.path("trials"))
        self._journal, self._metric = journal, metric

    def finish(
        self, trials: Sequence[Record], result: Mapping[str, Any], files: Mapping[str, bytes]
    ) -> None:
        """Hand in the sweep's own numbers, history, files; without a server say where they are."""
        try:
            with limited(PROBE if self._away else {}):
                self._summarise(trials, result)
                with tempfile.TemporaryDirectory() as folder:
                    for name, data in {**files, "trials.csv": table(trials).encode()}.items():
                        path = Path(folder) / name
                        path.write_bytes(data)
                        self._tracker.log_artifact(
                            path, "figures" if name.endswith(".png") else None
                        )
        except TrackingError as error:
            progress.say(
                f"warning: {error}\n"
                f"warning: best.yaml and the figures are in {self._journal.run.root}"
            )

    def _keep(self, trial: Record) -> None:
        self._journal.write(trial)

    def _hand_in(self, trial: Record) -> str:
        """Return the id of a new child run that has ended."""
        tags = {"raycd.trial": str(trial["number"]), "raycd.status": trial["status"]}
        if trial["error"]:
            tags["raycd.error"] = trial["error"][:5000]
        run = self._tracker.child(
            f"trial {trial['number']:03d}", trial["settings"], tags, began=trial["started"]
        )
        if trial["value"] is not None:
            run.log_metrics(
                {**_named(self._metric, "best ", trial["value"]), "trial_seconds": trial["seconds"]}
            )
        run.log_epochs([self._measured(epoch) for epoch in trial["epochs"]])
        run.close(STATUS[trial["status"]], ended=trial["started"] + trial["seconds"])
        return run.run_id

    def _measured(self, epoch: Mapping[str, Any]) -> dict[str, Any]:
        """Return an epoch's metrics; the loss on pseudo triplets, another one, stands apart."""
        loss = {"loss": epoch["loss"]}
        shown = {name: epoch[name] for name in ("epoch", "seen", "lr", "seconds")}
        return {
            **_named(self._metric, "", epoch["selection"]),
            **shown,
            **({"pseudo": loss} if epoch["kind"] == "pseudo" else loss),
        }

    def _summarise(self, trials: Sequence[Record], result: Mapping[str, Any]) -> None:
        leader = best(trials)
        if leader is not None:
            self._tracker.log_metrics(
                {**_named(self._metric, "best ", leader["value"]), "best_trial": leader["number"]}
            )
        greatest = 0.0
        for trial in trials:  # the history: one step a trial
            if trial["value"] is not None:
                greatest = max(greatest, trial["value"])
                numbers = _named(self._metric, "trial ", trial["value"]) | _named(
                    self._metric, "best so far ", greatest
                )
                self._tracker.log_metrics(numbers, step=trial["number"])
        if result:
            for metric, row in result["metrics"].items():
                known = {key: value for key, value in row.items() if value is not None}
                self._tracker.log_metrics({"val": _named(metric, "", known)})
            self._tracker.set_tags({"raycd.better": result["better"]})


def _named(metric: str, word: str, value: object) -> dict[str, Any]:
    """Return a metric's value as MLflow shows it: a category's below the category."""
    category, slash, measure = metric.rpartition("/")
    return {f"{word}{category}": {measure: value}} if slash else {f"{word}{measure}": value}


def table(trials: Sequence[Record]) -> str:
    """Return all trials as CSV: number, status, value, epochs, seconds, each setting, error."""
    out = io.StringIO()
    names = list(dict.fromkeys(name for trial in trials for name in trial["settings"]))
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["number", "status", "value", "epochs", "seconds", *names, "error"])
    for trial in trials:
        cells = [trial["settings"].get(name, "") for name in names]
        value = "" if trial["value"] is None else trial["value"]
        writer.writerow(
            [
                trial["number"],
                trial["status"],
                value,
                len(trial["epochs"]),
                trial["seconds"],
                *cells,
                trial["error"] or "",
            ]
        )
    return out.getvalue()
