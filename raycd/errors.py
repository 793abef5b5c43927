"""User errors as exceptions. Each message says what, got, expected and what to do.

RaycdError             ends a job with one message and exit code 2
├── ConfigError        a setting is unknown or impossible
├── DataError          annotations or images are absent, malformed or too many are broken
├── TrainingError      training cannot go on: its loss or its weights are not finite
├── WeightsError       weights, a checkpoint or a bundle cannot be read or do not fit
├── RunError           a run folder belongs to other settings, is in use or cannot be written
├── TrackingError      the MLflow record is unreachable
└── GalleryError       the gallery database is unreachable, unreadable or does not fit
"""

from pathlib import Path
from typing import Literal


class RaycdError(Exception):
    """A mistake that the user can fix. `str(error)` is the whole message, one to four lines."""

    def __init__(
        self,
        what: str,
        *,
        got: object | None = None,
        expected: object | None = None,
        do: str | None = None,
    ) -> None:
        self.what = what
        lines = [what]
        if got is not None:
            lines.append(f"  got:      {got}")
        if expected is not None:
            lines.append(f"  expected: {expected}")
        if do is not None:
            lines.append(f"  to do:    {do}")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[object, ...]:
        """Cross process borders (Ray) with message and attributes, whatever the arguments were."""
        return _restored, (type(self), str(self)), self.__dict__


def _restored(kind: type[RaycdError], message: str) -> RaycdError:
    return kind.__new__(kind, message)


class ConfigError(RaycdError):
    """A setting is unknown or impossible."""


class DataError(RaycdError):
    """Annotations or images are absent, malformed, or too many are broken."""


class TrainingError(RaycdError):
    """Training cannot go on: its loss or its weights are not finite.

    All workers of a stage raise it together.
    """


class WeightsError(RaycdError):
    """Weights, a checkpoint or a bundle cannot be read, fail their hash or do not fit together."""


class RunError(RaycdError):
    """A run folder belongs to other settings, is in use by another process or cannot be written."""


class TrackingError(RaycdError):
    """The MLflow record is unreachable."""


class GalleryError(RaycdError):
    """The gallery database is unreachable, cannot be read or written, or does not fit.

    `reason` tells programs which. unreachable and locked may be temporary; full, read_only,
    damaged, replaced (the file is not the one that was opened), newer (its schema is of a later
    raycd), unmigrated and in_use need a person; mismatch is features of another encoder or size.
    Of a search engine that has the gallery: engine (it does not answer) and filling (it does not
    have the whole gallery yet).
    """

    Reason = Literal[
        "unreachable",
        "locked",
        "full",
        "read_only",
        "damaged",
        "replaced",
        "newer",
        "unmigrated",
        "in_use",
        "mismatch",
        "engine",
        "filling",
    ]

    def __init__(
        self,
        what: str,
        reason: Reason = "unreachable",
        *,
        got: object | None = None,
        expected: object | None = None,
        do: str | None = None,
    ) -> None:
        super().__init__(what, got=got, expected=expected, do=do)
        self.reason = reason


def called(name: str) -> str:
    """Return how one of our programs, "jobs/train.py", is called here: an installed package has the
    command `raycd` only.
    """
    script = Path(__file__).parents[1] / name
    if (script.parents[1] / "pyproject.toml").is_file():
        return f"python {name}"
    return f"raycd {'serve' if name == 'serve/app.py' else script.stem}"


def brief(error: BaseException, most: int = 300) -> str:
    """Return the kind and the message of another library's error, as one line of an error of ours.

    The message is cut to `most` characters.
    """
    return f"{type(error).__name__}: {' '.join(str(error).split())[:most]}"
