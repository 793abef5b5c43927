"""Steps that are done once: what each has left is noted in a folder, with what it was done of."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raycd import progress
from raycd.durable import replace_file


@dataclass(frozen=True)
class Steps:
    """The steps of one undertaking, whose notes are in `folder`."""

    folder: Path

    def done(self, step: str, of: Sequence[str]) -> dict[str, Any] | None:
        """Return what a step has left that was done of the same; None where it was not.

        An earlier raycd has noted the first of what it was done of alone.
        """
        file = self.folder / f"{step}.json"
        if not file.exists():
            return None
        left: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return left["found"] if left["of"] in (of[0], list(of)) else None

    def once(
        self, step: str, of: Sequence[str], work: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Return what a step has left, after doing it unless it was done of the same."""
        if (done := self.done(step, of)) is not None:
            progress.say(f"{step}: done before")
            return done
        began = time.monotonic()
        found = work()
        self.folder.mkdir(parents=True, exist_ok=True)
        with replace_file(self.folder / f"{step}.json") as fresh:
            fresh.write_text(json.dumps({"of": of, "found": found}, indent=1), encoding="utf-8")
        progress.say(f"{step}: done in {progress.duration(time.monotonic() - began)}")
        return found
