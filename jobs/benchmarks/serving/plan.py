"""What the load generator is told, and what it saw: plain values that cross from one process to the
other as JSON.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import NamedTuple, Self

OK = 200
REFUSED = (429, 503)
FAILED = 0  # status of a request that got no answer


@dataclass(frozen=True)
class Phase:
    """Either `clients` that ask again as soon as they are answered, or `rate` requests a second
    come what may.
    """

    seconds: float
    clients: int = 0
    rate: float = 0.0


@dataclass(frozen=True)
class Plan:
    """Phases that follow one another without a pause, on one server of this machine."""

    port: int
    phases: list[Phase]
    material: str
    """Folder that `material.write` filled."""
    upload: bool = True
    """Each query brings a picture; else it names an image of the gallery."""
    new_texts: bool = True
    """No text is asked twice; else there are sixteen."""
    first: int = 0
    """Number of the first new text: two plans for one server begin at numbers far apart."""

    def to_json(self) -> str:
        """As the load generator reads it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`."""
        values = json.loads(text)
        return cls(**values | {"phases": [Phase(**phase) for phase in values["phases"]]})


class Sample(NamedTuple):
    """One request: when it was due (seconds since its phase began), how long it took from then on,
    and its answer.
    """

    due: float
    ms: float
    status: int
    timing: str
    """Its header Server-Timing; empty where there was none."""


class Seen(NamedTuple):
    """The samples of each phase, and what the load generator itself took from the machine."""

    phases: list[list[Sample]]
    client_ms: float
    """Milliseconds of processor time for one request."""

    def to_json(self) -> str:
        """As the load generator writes it."""
        return json.dumps(self)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`."""
        phases, client_ms = json.loads(text)
        return cls([[Sample(*sample) for sample in phase] for phase in phases], client_ms)
