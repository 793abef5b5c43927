"""What went wrong in a training and where it went on, told as it happens and kept with its stage.

A failure is noted by Ray Train's controller, the place that it goes on from by the workers that
start next; both reach the driver over the `relay.Board`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from ray.train import UserCallback

from raycd import progress
from raycd.config import cli
from raycd.errors import RaycdError, RunError
from raycd.runtime import private
from raycd.runtime.checkpoints import Checkpoints

FILE = "failures.json"


class Teller(UserCallback):
    """A callback of Ray Train's controller that notes failures on a board."""

    def __init__(self, board: Any) -> None:
        self._board = board

    def after_exception(
        self, run_context: Any, worker_exceptions: Mapping[int, BaseException]
    ) -> None:
        """Note each worker's error."""
        failed = {worker: _in_a_line(error) for worker, error in worker_exceptions.items()}
        when = datetime.now(UTC).timestamp()
        self._board.note.remote({"kind": "failed", "when": when, "errors": failed})


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
        """Enter the errors of workers, each once: the controller may see them several times."""
        waiting = {entry["worker"] for entry in self._waiting()}
        errors = {worker: text for worker, text in event["errors"].items() if worker not in waiting}
        for worker, text in sorted(errors.items()):
            where = self._workers.get(worker, "an unknown machine")
            self._enter(event["when"], text, worker=worker, where=where)
            progress.say(f"warning: {self._stage}: worker {worker} ({where}) has failed: {text}")
        self._save()
        return bool(errors)

    def _began(self, event: Mapping[str, Any]) -> bool:
        """Complete the entries by where it goes on, or enter what the workers did not see."""
        before, self._size = self._size, event["workers"]
        if not self._waiting():
            if before is None and self._started_before:
                self._enter(event["when"], "the job ended before the stage did")
            elif before is not None:
                self._enter(event["when"], f"the workers were {before}, now {self._size}")
        entries = self._waiting()
        for entry in entries:
            entry |= {"continued_from": event["place"], "workers": event["workers"]}
        if entries:
            progress.say(
                f"{self._stage}: goes on from {event['place']}, workers: {event['workers']}"
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
    place = entry.get("continued_from")
    then = "" if place is None else f"; went on from {place} with {entry['workers']} workers"
    return f"{entry['when']} {who}{entry['what']}{then}"


def _in_a_line(error: BaseException) -> str:
    """Return what a worker has raised, or how it died, without a traceback."""
    error = private.cause_of_death(error)
    ours = [cause for cause in cli.causes(error) if isinstance(cause, RaycdError)]
    lines = [line.strip() for line in str(ours[0] if ours else error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if lines[0].startswith("Traceback"):
        return lines[-1][:300]
    # Ray says first that an actor has died, and later on why
    said = [line for line in lines if line.startswith("The actor died")]
    return (said or lines)[-1 if said else 0][:300]
