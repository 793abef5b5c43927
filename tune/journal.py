"""The record of a sweep in its own folder: what was asked, and a file for each ended trial.

A trial's file is written at once when the trial ends, so a sweep that is killed at any moment has
lost none of them. `runs/<name>-sweep/`: sweep.json (settings, space), trials/00007.json, finals/,
evaluation/, best.yaml, result.json, figures/.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from typing import Any

from raycd.config import Config, flatten
from raycd.errors import RunError
from raycd.model import precision
from raycd.redact import json_without_passwords
from raycd.run import Run
from raycd.runtime.stages import weights
from tune.space import Space

SWEEP, RESULT = "sweep.json", "result.json"
CUT_SHORT = "images_cut_short"  # of a trial; see raycd.mine.counts
_BY_DIM = "stage2.bilinear_dim"  # its default range depends on the size of the features
ENDED = ("finished", "stopped", "failed")  # of itself, by the scheduler, with an error

# Prefixes of settings that may change between starts: they do not decide what a trial gives.
_FREE = (
    "tracking.",
    "registry.",
    "compute.",
    "train.",
    "tune.samples",
    "tune.concurrent",
    "tune.final",
    "tune.seeds",
    "name",
    "runs",
)

Record = dict[str, Any]


class Journal:
    """A sweep's folder.

    Args:
        root: Folder or URI.
        of: Root of the run whose features and tables the trials use.

    Raises:
        RunError: The folder belongs to another kind of run, or to a sweep of another run.
    """

    def __init__(self, root: str, of: str) -> None:
        self.run = Run(root, {"kind": "sweep", "of": of})

    def check(self, space: Space, *, resume: bool) -> None:
        """Raise what `opened` would raise, as far as it is known before there are tables."""
        ranges = space.to_dict()
        with self.run.locked():
            known = self._known(resume=resume)
            if known is not None and _BY_DIM in ranges:
                ranges[_BY_DIM] = known["space"].get(_BY_DIM)
            self._check_same(known, {"settings": _fixed(space.config), "space": ranges})

    @contextmanager
    def opened(
        self,
        space: Space,
        inputs: Mapping[str, str],
        made_with: Mapping[str, str],
        *,
        resume: bool,
    ) -> Iterator[None]:
        """Hold the folder for this process.

        A sweep with trials is gone on with, and has to be there where `resume` says so.

        Args:
            inputs: Fingerprints of what trials read.
            made_with: Hashes of the weights that it was made with (`runtime.stages.weights`).

        Raises:
            RunError: The sweep was started with other settings or weights, or there is none to
                resume, or another process works on it.
        """
        asked = {"settings": _fixed(space.config), "space": space.to_dict(), "inputs": dict(inputs)}
        with self.run.locked():
            known = self._known(resume=resume)
            self._check_same(known, asked)
            if known is None:
                self.run.write_json(SWEEP, asked | {weights.ENTRY: dict(made_with)})
            elif others := weights.changed(known.get(weights.ENTRY, {}), made_with):
                raise RunError(
                    f"the sweep in {self.run.root} was started with other weights",
                    got=f"weights of {', '.join(others)} that are others now",
                    do="start another by --sweep NAME",
                )
            yield

    def _known(self, *, resume: bool) -> dict[str, Any] | None:
        """Return what was asked of the sweep that is to go on; None where a new one starts."""
        known: dict[str, Any] | None = self.run.read_json(SWEEP)
        if resume and known is None:
            raise RunError(
                f"there is no sweep to resume in {self.run.root}", do="start it without --resume"
            )
        return known if resume or self.trials() else None

    def _check_same(
        self, known: Mapping[str, Any] | None, asked: Mapping[str, Mapping[str, Any]]
    ) -> None:
        if known is None:
            return
        # A sweep of an earlier version has passwords in its settings
        then, now = used(json_without_passwords(known["settings"])), used(asked["settings"])
        compared = [name for name in then if name in now and not _is_open(name, now[name])]
        noted = dict(known) | {"settings": {name: then[name] for name in compared}}
        asked = dict(asked) | {"settings": {name: now[name] for name in compared}}
        changes = [
            change for part in asked for change in precision.changes(noted[part], asked[part])
        ]
        if changes:
            raise RunError(
                f"the sweep in {self.run.root} was started with other settings",
                got="; ".join(changes[:5]) + ("; ..." if len(changes) > 5 else ""),
                do="go on with the settings it was started with, or start another by --sweep NAME",
            )

    def trials(self) -> list[Record]:
        """Return all that have ended, by number."""
        names = [name for name in self.run.names("trials") if name.endswith(".json")]
        records = [self.run.read_json(posixpath.join("trials", name)) for name in names]
        return sorted(records, key=itemgetter("number"))

    def write(self, record: Record) -> None:
        """Keep what a trial gave, or what has been added to it since."""
        assert record["status"] in ENDED
        self.run.write_json(f"trials/{record['number']:05d}.json", record)


def used(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by dotted name, but for those of an adaptation that is left out."""
    adapts = settings.get("adapt.epochs", 0) > 0
    return {
        name: value
        for name, value in settings.items()
        if adapts or name == "adapt.epochs" or not name.startswith("adapt.")
    }


def _is_open(name: str, value: Any) -> bool:
    """Tell whether a precision is still to be settled: before the cluster has been asked."""
    return name.endswith(".precision") and value == "auto"


def ranked(trials: Sequence[Record]) -> list[Record]:
    """Return the measured trials, the greatest value first, the earlier of two equal ones first."""
    return sorted(
        (t for t in trials if t["value"] is not None), key=lambda t: (-t["value"], t["number"])
    )


def used_pseudo(trial: Record) -> bool:
    """Tell whether a trial has trained on pseudo triplets: without, thresholds change nothing."""
    return any(epoch["kind"] == "pseudo" for epoch in trial["epochs"])


def best(trials: Sequence[Record]) -> Record | None:
    """Return the trial with the greatest value. None where all have failed."""
    return next(iter(ranked(trials)), None)


def _fixed(config: Config) -> dict[str, Any]:
    """Return the settings that decide what a trial gives, without passwords."""
    settings = flatten(config).items()
    free = {name: value for name, value in settings if not name.startswith(_FREE)}
    return dict(json_without_passwords(free))
