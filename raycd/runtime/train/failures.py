"""What went wrong in a training and where it went on, told as it happens and kept with its stage.

A failure is noted by Ray Train's controller (`teller.py`), what it goes on from by the workers that
start next; both reach the driver over the `relay.Board`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from ray.exceptions import OutOfMemoryError

from raycd import program, progress
from raycd.config import cli
from raycd.errors import RaycdError, RunError
from raycd.runtime import private
from raycd.runtime.train.checkpoints import Checkpoints
from raycd.runtime.train.teller import in_a_line

FILE = "failures.json"


class Failures:
    """The failures of a training, those of earlier processes included.

    Args:
        stage: What messages call the training.
        checkpoints: Where a file of them is kept until the stage is done.
    """

    def __init__(self, stage: str, checkpoints: Checkpoints) -> None:
        self._stage, self._checkpoints = stage, checkpoints
        self.entries: list[dict[str, Any]] = checkpoints.read_json(FILE) or []
        self._workers: dict[int, str] = {}
        self._size: int | None = None
        self._started_before = bool(checkpoints.names())

    def take(self, event: Mapping[str, Any]) -> bool:
        """Take an event of the board; return whether there is another entry."""
        if event["kind"] == "worker":
            self._workers[event["rank"]] = f"{event['where']}, process {event['process']}"
        elif event["kind"] == "failed":
            return self._failed(event)
        elif event["kind"] == "began":
            return self._began(event)
        return False

    def _failed(self, event: Mapping[str, Any]) -> bool:
        """Enter the errors of workers, each once: the controller may see them several times.

        A worker may fail again, in another process or with another error, before one says `began`.
        """
        known = {(entry["worker"], entry["where"], entry["what"]) for entry in self._waiting()}
        errors = {
            (worker, self._workers.get(worker, "an unknown machine"), text)
            for worker, text in event["errors"].items()
        }
        for worker, where, text in sorted(errors - known):
            self._enter(event["when"], text, worker=worker, where=where)
            progress.say(f"warning: {self._stage}: worker {worker} ({where}) has failed: {text}")
        self._save()
        return not errors <= known

    def _began(self, event: Mapping[str, Any]) -> bool:
        """Complete the entries by where it goes on, or enter what the workers did not see."""
        before, self._size = self._size, event["workers"]
        if not self._waiting():
            if before is None and self._started_before:
                self._enter(event["when"], "the job ended before the stage did")
            elif before is not None:
                changed = f"the workers were {before}, now {self._size}"
                again = "the workers were started again"
                self._enter(event["when"], again if before == self._size else changed)
        entries = self._waiting()
        for entry in entries:
            entry |= {"continued_from": event["start"], "workers": event["workers"]}
        if entries:
            progress.say(
                f"{self._stage}: goes on from {event['start']}, workers: {event['workers']}"
            )
            self._save()
        return bool(entries)

    def _enter(
        self, when: float, what: str, *, worker: int | None = None, where: str | None = None
    ) -> None:
        at = datetime.fromtimestamp(when, UTC).isoformat(timespec="seconds")
        self.entries.append({"when": at, "what": what, "worker": worker, "where": where})

    def _waiting(self) -> list[dict[str, Any]]:
        return [entry for entry in self.entries if "continued_from" not in entry]

    def _save(self) -> None:
        with suppress(OSError, RunError):  # it is told in any case
            self._checkpoints.write_json(FILE, self.entries)


def described(entry: Mapping[str, Any]) -> str:
    """Return an entry as one line."""
    who = "" if entry["worker"] is None else f"worker {entry['worker']} ({entry['where']}): "
    start = entry.get("continued_from")
    then = "" if start is None else f"; went on from {start}, workers: {entry['workers']}"
    return f"{entry['when']} {who}{entry['what']}{then}"


def translate_error(error: Exception, allowed: int) -> RunError | None:
    """Return the user's error where workers of Ray Train died once more than `allowed`.

    None where a worker has raised one of ours, which says more than the deaths beside it, and
    where what ended the training is no death.
    """
    causes = [private.cause_of_death(cause) for cause in cli.causes(error)]
    if any(isinstance(cause, RaycdError) for cause in causes):
        return None
    if unstarted := [cause for cause in causes if private.is_failed_start(cause)]:
        return RunError(
            "training workers cannot be started",
            got=in_a_line(unstarted[0]),
            do=f"lower compute.train_workers, or see Ray's logs on the machines; then "
            f"{program.AGAIN}",
        )
    deaths = [cause for cause in causes if program.is_death(cause)]
    if not deaths:
        return None
    what, do = "a training worker has died", f"{program.AGAIN}, or raise train.max_failures"
    if isinstance(deaths[0], OutOfMemoryError):
        what = "a training worker was ended: its machine had no memory left"
        do = "lower cache_mib, loader_workers or batch_size of what trains, or have fewer workers "
        do += f"on a machine; then {program.AGAIN}"
    return RunError(
        what,
        got=f"failure {allowed + 1}: {in_a_line(deaths[0])}",
        expected=f"at most {allowed} failures (train.max_failures)",
        do=do,
    )
