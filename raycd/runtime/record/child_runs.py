"""Child runs of MLflow that are handed in as results come, and again where MLflow was away.

The folder of results is the truth. What MLflow does not take, because its server has gone away,
stays there and is handed in at the end, or when the same command is started again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from raycd import progress
from raycd.errors import TrackingError
from raycd.runtime.record.mlflow_store import PROBE, limited
from raycd.runtime.record.tracking import Tracker

Record = dict[str, Any]


class ChildRuns(ABC):
    """Results of one kind, each a child run of `tracker`'s.

    Args:
        tracker: The run above them.
        what: What a person calls them: "trials".
        where: The folder that keeps them.
    """

    def __init__(self, tracker: Tracker, what: str, where: str) -> None:
        self._tracker, self._what, self._where = tracker, what, where
        self._away = False

    @abstractmethod
    def _hand_in(self, record: Record) -> str:
        """Return the id of a new child run that has ended."""

    @abstractmethod
    def _keep(self, record: Record) -> None:
        """Keep that MLflow has it: `record["mlflow"]` is new."""

    def add(self, record: Record) -> None:
        """Hand in one result, unless the server has gone away."""
        if self._away or self._has(record):
            return
        try:
            with limited(PROBE):  # others wait meanwhile
                record["mlflow"] = {"parent": self._tracker.run_id, "run": self._hand_in(record)}
        except TrackingError as error:
            self._away = True
            progress.say(
                f"warning: {error}\nwarning: the {self._what} go on and are kept in "
                f"{self._where}; MLflow gets them at the end"
            )
        else:
            self._keep(record)

    def catch_up(self, records: Sequence[Record]) -> None:
        """Hand in what MLflow lacks, and say how many it still lacks then."""
        self._away = False
        if not all(map(self._has, records)):
            self._drop_unfinished()
        for record in records:
            self.add(record)
        missing = sum(not self._has(record) for record in records)
        if missing:
            progress.say(
                f"warning: MLflow lacks {missing} of {len(records)} {self._what}; they are in "
                f"{self._where}: start the same command again to hand them in"
            )

    def _drop_unfinished(self) -> None:
        """Drop what was half handed in when MLflow or this process went away: it comes anew."""
        try:
            with limited(PROBE):
                self._tracker.drop_unfinished()
        except TrackingError as error:
            self._away = True
            progress.say(f"warning: {error}")

    def _has(self, record: Record) -> bool:
        """Tell whether this run has the result, not one that tracking.uri named before."""
        return (record.get("mlflow") or {}).get("parent") == self._tracker.run_id
