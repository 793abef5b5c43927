"""An open MLflow run: what is logged in it."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from raycd import progress
from raycd.errors import TrackingError
from raycd.runtime.record.mlflow_store import CALLS, PROBE, UPLOADS, MlflowStore

_LONGEST_PART = 100  # characters of a part of a metric's name; MLflow takes 250 of the whole


class MlflowRun:
    """An open MLflow run. Without a store, every call does nothing."""

    def __init__(self, store: MlflowStore | None, run_id: str, *, continued: bool = False) -> None:
        self._store = store
        self.run_id = run_id
        self._epochs: set[int] = set()  # logged before
        self._step = 0  # the last one logged
        self._machine_step = -1  # the last one of machines
        self._unsure = False  # whether the server may have what it did not answer to
        if continued:
            self._read_logged()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        failed = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        try:
            self.close("FINISHED" if error is None else failed)
        except TrackingError as lost:
            if error is None:
                raise
            # The first error is the one to show.
            progress.say(f"warning: {lost.what}: its status stays RUNNING")

    def close(self, status: str = "FINISHED", *, ended: float | None = None) -> None:
        """End the run as FINISHED, FAILED or KILLED, now or at `ended` (seconds of the epoch)."""
        if self._store is not None:
            limits = CALLS if status == "FINISHED" else PROBE  # a failure shall end soon
            with self._store.translate_errors(
                "the end of the MLflow run could not be recorded", limits=limits
            ):
                self._store.client.set_terminated(self.run_id, status, end_time=milliseconds(ended))

    def log_metrics(self, metrics: Mapping[str, Any], step: int = 0) -> None:
        """Log nested numbers: {"sum": {"hat": {"recall@10": x}}} as sum/hat/recall_at_10."""
        self._log([(name, value, step) for name, value in _numbers(metrics)])

    def log_epochs(self, epochs: Iterable[Mapping[str, Any]]) -> None:
        """Log epochs of a training stage as steps; those of kind "pseudo" as pseudo/loss etc.

        Epochs that the run has already are left out.
        """
        self._log_epochs(epochs, CALLS)

    def log_training(
        self,
        epochs: Iterable[Mapping[str, Any]],
        steps: Mapping[int, Mapping[str, float]],
        tags: Mapping[str, str],
    ) -> None:
        """Log what a running training has measured, without patience: epochs, and step/loss etc.

        What the run has already is left out, but for tags.
        """
        self._log_epochs(epochs, PROBE)
        measured = [
            (f"step/{name}", value, step)
            for step, values in sorted(steps.items())
            if step > self._step
            for name, value in _numbers(values)
        ]
        self._log(measured, tags, limits=PROBE)
        self._step = max([self._step, *steps])

    def log_machines(self, machines: Mapping[str, Any]) -> None:
        """Log MLflow's system metrics, without patience: system/cpu_utilization_percentage etc.

        Each call is a step after the one before.
        """
        self._machine_step += 1
        named = _numbers({"system": machines})
        self._log([(name, value, self._machine_step) for name, value in named], limits=PROBE)

    def _read_logged(self, limits: Mapping[str, str] = CALLS) -> None:
        """Read which epochs and steps the run has, so that none is logged twice."""
        if self._store is None:
            return
        with self._store.translate_errors("the MLflow record cannot be read", limits=limits):
            of = partial(self._store.client.get_metric_history, self.run_id)
            for name in ("loss", "pseudo/loss"):
                self._epochs |= {metric.step for metric in of(name)}
            newest = self._store.client.get_run(self.run_id).to_proto().data.metrics
            steps = {metric.key: int(metric.step) for metric in newest}
            self._step = steps.get("step/loss", 0)
            own = [step for name, step in steps.items() if name.startswith("system/")]
            self._machine_step = max(self._machine_step, *own, -1)
        self._unsure = False

    def _log_epochs(self, epochs: Iterable[Mapping[str, Any]], limits: Mapping[str, str]) -> None:
        if self._unsure:
            self._read_logged(limits)
        new = [epoch for epoch in epochs if int(epoch["epoch"]) not in self._epochs]
        self._log(
            [
                (
                    f"pseudo/{name}" if epoch.get("kind") == "pseudo" else name,
                    value,
                    int(epoch["epoch"]),
                )
                for epoch in new
                for name, value in _numbers({key: epoch[key] for key in epoch if key != "epoch"})
            ],
            limits=limits,
        )
        self._epochs |= {int(epoch["epoch"]) for epoch in new}

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Copy a file, or a folder with its content, to `folder` of the run's artifacts."""
        if self._store is None:
            return
        path = Path(path)
        with self._store.translate_errors(
            f"{path} could not be put into the MLflow record", limits=UPLOADS
        ):
            if path.is_dir():
                self._store.client.log_artifacts(self.run_id, str(path), folder or path.name)
            else:
                self._store.client.log_artifact(self.run_id, str(path), folder)

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Set tags, but for those that are None."""
        self._log([], tags={name: str(value) for name, value in tags.items() if value is not None})

    def _log(
        self,
        metrics: Sequence[tuple[str, float, int]],
        tags: Mapping[str, str] | None = None,
        *,
        limits: Mapping[str, str] = CALLS,
    ) -> None:
        if self._store is None or not (metrics or tags):
            return
        with self._store.translate_errors("the MLflow record cannot be written", limits=limits):
            from mlflow.entities import Metric, RunTag

            now = int(time.time() * 1000)
            entities = [Metric(name, value, now, step) for name, value, step in metrics]
            run_tags = [RunTag(name, value) for name, value in (tags or {}).items()]
            try:
                self._store.client.log_batch(self.run_id, metrics=entities, tags=run_tags)
            except Exception:
                self._unsure = True
                raise


def milliseconds(seconds: float | None) -> int | None:
    """Return a time of MLflow."""
    return None if seconds is None else int(seconds * 1000)


def _numbers(nested: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """Return names that MLflow accepts, and values; what is not a number is left out."""
    found: list[tuple[str, float]] = []
    for name, value in nested.items():
        if isinstance(value, Mapping):
            found += _numbers(value, f"{prefix}{_metric_name(name)}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append((f"{prefix}{_metric_name(name)}", float(value)))
    return found


def _metric_name(name: str) -> str:
    """Return a part of a metric's name that MLflow accepts: recall@10 -> recall_at_10.

    A part that has to change, "tops & tees" or one that is too long, ends in a piece of its hash,
    so that two names never become one; so does a name that looks like the result of a change.
    """
    plain = name.replace("@", "_at_")
    changed = re.sub(r"[^\w.\- ]", "_", plain)[:_LONGEST_PART].strip(". ") or "_"
    if changed == plain and not re.search(r"_at_|-[0-9a-f]{8}$", name):
        return changed
    return f"{changed}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
