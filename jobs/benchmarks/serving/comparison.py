"""The service beside the floor: what is promised, and what was found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from jobs.benchmarks.serving.figures import Figures

FLOORS = {"floor-1-thread": 1, "floor-2-threads": 2}  # server -> torch's threads
SLOWER_MS = {
    ("demo", "default"): 10,
    ("demo", "haproxy"): 4,
}  # p50 of one client may exceed the floor's by so much
FASTER = {
    ("demo", "default"): 1.2,
    ("demo", "haproxy"): 2.5,
    ("vit", "default"): 1.0,
    ("vit", "haproxy"): 1.0,
}
TAIL = 3  # p99 : p50 of 32 clients at most


class Cell(NamedTuple):
    """One measurement."""

    encoder: str
    server: str
    scenario: str


def rows(found: Mapping[Cell, Figures]) -> Figures:
    """Each comparison whose cells were measured, with its target in its name."""
    told: Figures = {}
    for (encoder, proxy), target in SLOWER_MS.items():
        service, floor = (
            _figure(found, encoder, proxy, "1", "p50, ms"),
            _floor(found, encoder, "1", "p50, ms", min),
        )
        if service is not None and floor is not None:
            told[
                f"{encoder}, {proxy}: p50 of one client beyond the floor's, ms (at most {target})"
            ] = service - floor
    for (encoder, proxy), ratio in FASTER.items():
        service = _figure(found, encoder, proxy, "32", "successes/s")
        floor = _floor(found, encoder, "32", "successes/s", max)
        if service is not None and floor is not None:
            told[
                f"{encoder}, {proxy}: successes/s of 32 clients : the floor's (at least {ratio})"
            ] = service / floor
    for encoder, proxy in FASTER:
        p50, p99 = (_figure(found, encoder, proxy, "32", f"{name}, ms") for name in ("p50", "p99"))
        if p50 is not None and p99 is not None:
            told[f"{encoder}, {proxy}: p99 : p50 of 32 clients (at most {TAIL})"] = p99 / p50
    return told


def _figure(
    found: Mapping[Cell, Figures], encoder: str, server: str, scenario: str, name: str
) -> float | None:
    figures = found.get(Cell(encoder, server, scenario))
    return None if figures is None else float(figures[name])


def _floor(
    found: Mapping[Cell, Figures],
    encoder: str,
    scenario: str,
    name: str,
    better: Callable[[list[float]], float],
) -> float | None:
    """The better of the floors that were measured."""
    values = [
        value
        for server in FLOORS
        if (value := _figure(found, encoder, server, scenario, name)) is not None
    ]
    return better(values) if values else None
