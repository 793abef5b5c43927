"""The callback with which Ray Train's controller tells what has failed.

In a module of its own: the controller's process imports it, and would import torch with the
`Failures` that it is told to.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from ray.train import UserCallback

from raycd.config import cli
from raycd.errors import RaycdError
from raycd.runtime import private


class Teller(UserCallback):
    """A callback of Ray Train's controller that notes failures on a board."""

    def __init__(self, board: Any) -> None:
        self._board = board

    def after_exception(
        self, run_context: Any, worker_exceptions: Mapping[int, BaseException]
    ) -> None:
        """Note each worker's error."""
        failed = {worker: in_a_line(error) for worker, error in worker_exceptions.items()}
        when = datetime.now(UTC).timestamp()
        self._board.note.remote({"kind": "failed", "when": when, "errors": failed})


def in_a_line(error: BaseException) -> str:
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
