"""The MLflow record of a training while it runs: its epochs, losses of steps, and failures.

A record that cannot be written does not stop the training: what is missing follows once it can be
written again, epochs at the latest where the stage ends (`MlflowRun.log_epochs`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from raycd import progress
from raycd.errors import TrackingError
from raycd.runtime.record.mlflow_run import MlflowRun
from raycd.runtime.train.failures import Failures, described

AGAIN_AFTER = 30.0  # seconds until a record that was away is tried again
TELL_AFTER = 60.0  # seconds without a worker after which it is told what is waited for


class EventHandler:
    """What the driver does with the events of a training.

    Args:
        stage: What messages call the training.
        run: The stage's MLflow run.
    """

    def __init__(self, stage: str, run: MlflowRun, failures: Failures) -> None:
        self._stage, self._run, self._failures = stage, run, failures
        self._epochs: list[dict[str, Any]] = []
        self._steps: dict[int, Mapping[str, float]] = {}
        self._said: set[str] = set()
        self._has_failed = False
        self._not_before = 0.0
        self.starts = 0
        """How many workers have started."""
        self._expected = 0
        self._waits_since = math.inf  # there is a worker

    def expect(self, workers: int) -> None:
        """Note that so many workers, at least, are to start now."""
        self._expected, self._waits_since = workers, time.monotonic()

    def take(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Take events of the `relay.Board`, and write what there is to write."""
        for event in events:
            self._has_failed |= self._failures.take(event)
            if event["kind"] == "epoch":
                self._epochs.append(event["entry"])
            elif event["kind"] == "measured":
                self._steps[event["step"]] = event["values"]
            elif event["kind"] == "warning":
                progress.say(f"warning: {self._stage}: {event['text']}")
            elif event["kind"] == "said" and event["text"] not in self._said:
                self._said.add(event["text"])  # each worker says it
                progress.say(f"{self._stage}: {event['text']}")
            elif event["kind"] in ("worker", "failed"):
                self.starts += event["kind"] == "worker"
                self._waits_since = math.inf if event["kind"] == "worker" else time.monotonic()
        if time.monotonic() - self._waits_since > TELL_AFTER:
            self._waits_since = math.inf
            progress.say(f"{self._stage}: waiting for room for {self._expected} training workers")
        if time.monotonic() >= self._not_before:
            self._write()

    def finish(self) -> None:
        """Write what is missing, a last time."""
        if self._not_before:
            self._write()

    def _write(self) -> None:
        try:
            entries = enumerate(self._failures.entries if self._has_failed else [], start=1)
            tags = {f"raycd.failure.{number}": described(entry) for number, entry in entries}
            self._run.log_training(self._epochs, self._steps, tags)
            self._epochs, self._steps, self._has_failed = [], {}, False
            self._not_before = 0.0
        except TrackingError as error:
            if not self._not_before:
                progress.say(
                    f"warning: {self._stage}: {error.what}: the training goes on, and what is "
                    "missing follows"
                )
            self._not_before = time.monotonic() + AGAIN_AFTER
