"""What is measured at one server: each scenario sends plans and gives figures."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

from jobs.benchmarks.serving import figures
from jobs.benchmarks.serving.figures import Figures
from jobs.benchmarks.serving.load import send
from jobs.benchmarks.serving.plan import FAILED, Phase, Plan, Seen
from raycd.errors import RunError

ONE, MANY = 1, 32  # clients
WARM_UP_S = 3.0  # of each scenario, before what counts
BEFORE_S, AFTER_S = 5.0, 10.0  # of one client, on both sides of the overload
SETTLED_S = 1.0  # of the time before, which does not count
OVERLOAD = 2.0  # times what 32 clients get


@dataclass
class Site:
    """A server that runs, and how long to measure it."""

    port: int
    material: str
    seconds: float
    _firsts: count[int] = field(default_factory=lambda: count(0, 1_000_000))

    def send(self, *phases: Phase, upload: bool = True, new_texts: bool = True) -> Seen:
        """Carry out phases, with new texts that no phase before has used."""
        return send(
            Plan(self.port, list(phases), self.material, upload, new_texts, next(self._firsts))
        )


def clients(site: Site, number: int, *, upload: bool = True, new_texts: bool = True) -> Figures:
    """Speed and breakdown with so many clients at a time."""
    end = WARM_UP_S + site.seconds
    seen = site.send(Phase(end, clients=number), upload=upload, new_texts=new_texts)
    speed = figures.speed(seen.phases[0], WARM_UP_S, end)
    if not speed["successes/s"]:
        statuses = sorted({one.status for one in seen.phases[0]})
        raise RunError(
            f"a server answered none of {number} clients",
            got=f"status {statuses} ({FAILED}: no answer)",
        )
    breakdown = figures.breakdown([one for one in seen.phases[0] if one.due >= WARM_UP_S])
    return speed | breakdown | {"the load generator's own, ms of a core": seen.client_ms}


def known(site: Site) -> Figures:
    """What it saves, beside `clients`, that the image is the gallery's, that the text was seen
    before, and both.
    """
    ways = {
        "image_id, new text": (False, True),
        "picture, known text": (True, False),
        "image_id, known text": (False, False),
    }
    rows: Figures = {}
    for name, (upload, new_texts) in ways.items():
        alone = clients(site, ONE, upload=upload, new_texts=new_texts)
        together = clients(site, MANY, upload=upload, new_texts=new_texts)
        rows[f"{name}: p50 of one client, ms"] = alone["p50, ms"]
        rows[f"{name}: mean encode of one client, ms"] = alone.get("mean encode, ms", "not told")
        rows[f"{name}: successes/s of {MANY} clients"] = together["successes/s"]
    return rows


def overload(site: Site) -> Figures:
    """Twice what 32 clients get, sent whatever is answered; before it and right after it one client
    alone.
    """
    saturated = float(clients(site, MANY)["successes/s"])
    seen = site.send(
        Phase(BEFORE_S, clients=ONE),
        Phase(site.seconds, rate=OVERLOAD * saturated),
        Phase(AFTER_S, clients=ONE),
    )
    before, during, after = seen.phases
    before_ms = float(figures.speed(before, SETTLED_S, BEFORE_S)["p50, ms"])
    recovered = figures.recovery(after, before_ms)
    rate: Figures = {
        "saturation, successes/s": saturated,
        "asked/s": OVERLOAD * saturated,
        "p50 before, ms": before_ms,
    }
    told = recovered if recovered < AFTER_S else f"not within {AFTER_S:g}"
    return rate | figures.refusals(during) | {"recovery, s": told}
