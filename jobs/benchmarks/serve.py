"""The service against the floor: the same bundle, cores and load generator, one server at a time.

What is measured is a list of cells, encoder/server/scenario; --only takes patterns of them, and
--service options that every service is started with:

    python jobs/benchmark.py serve --preset demo --only 'demo/floor*,demo/haproxy/32' \
        --service='--threads 2'

The floor (serving/floor.py) runs with one torch thread and with two; the better figure counts.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import tempfile
import time
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from functools import partial
from itertools import groupby, product
from pathlib import Path
from typing import Any, NamedTuple

from jobs.benchmarks.serving import bundles, figures, servers
from jobs.benchmarks.serving.figures import Figures
from jobs.benchmarks.serving.load import Site
from raycd.config import Config
from raycd.errors import ConfigError, RunError
from raycd.runtime.pipeline import run_name

ONE, MANY = 1, 32  # clients
WARM_UP_S = 3.0  # of each scenario, before what counts
BEFORE_S, AFTER_S = 5.0, 10.0  # of one client, on both sides of the overload
SETTLED_S = 1.0  # of the time before, which does not count
OVERLOAD = 2.0  # times what 32 clients get
LONGER = {"demo": 1, "vit": 2}  # a batch of ViT-B-32 takes seconds, and a rate needs some of them
FLOORS = {"floor-1-thread": 1, "floor-2-threads": 2}  # server -> torch's threads
TAIL = 3  # p99 : p50 of 32 clients at most
SLOWER_MS = {("demo", "default"): 10, ("demo", "haproxy"): 4}  # p50 of one client, at most
RATIOS = (1.2, 2.5, 1.0, 1.0)  # successes/s of 32 clients : the floor's, at least
FASTER = dict(zip(product(("demo", "vit"), ("default", "haproxy")), RATIOS, strict=True))


class Measurement(NamedTuple):
    """One measurement."""

    encoder: str
    server: str
    scenario: str


def clients(site: Site, number: int, kind: str = bundles.KINDS[0]) -> Figures:
    """Return speed and breakdown with so many clients. Raises RunError where none is answered."""
    end = WARM_UP_S + site.seconds
    seen = site.send(end, clients=number, kind=kind)
    speed = figures.speed(seen, WARM_UP_S, end)
    if not speed["successes/s"]:
        statuses = sorted({one.status for one in seen.samples})
        got = f"status {statuses}, {seen.errors} broken connections"
        raise RunError(f"a server answered none of {number} clients", got=got)
    breakdown = figures.breakdown([one for one in seen.samples if one.due >= WARM_UP_S])
    return speed | breakdown | {"the load generator's own, ms of a core": seen.client_ms}


def known(site: Site) -> Figures:
    """Return what is saved if the image is the gallery's, the text was seen before, and both."""
    rows: Figures = {}
    for kind in bundles.KINDS[1:]:
        alone, together = clients(site, ONE, kind), clients(site, MANY, kind)
        rows[f"{kind}: p50 of one client, ms"] = alone["p50, ms"]
        rows[f"{kind}: mean encode of one client, ms"] = alone.get("mean encode, ms", "not known")
        rows[f"{kind}: successes/s of {MANY} clients"] = together["successes/s"]
    return rows


def overload(site: Site) -> Figures:
    """Send twice what 32 clients get, whatever is answered; before and after it one client."""
    saturated = float(clients(site, MANY)["successes/s"])
    rate = OVERLOAD * saturated
    before = figures.speed(site.send(BEFORE_S, clients=ONE), SETTLED_S, BEFORE_S)
    with site.sending(site.seconds, rate=rate, patience=AFTER_S) as during:
        time.sleep(site.seconds)
        after = site.send(AFTER_S, clients=ONE)
    recovered = figures.recovery(after.samples, float(before["p50, ms"]))
    return {
        "saturation, successes/s": saturated,
        "asked/s": rate,
        "p50 before, ms": before["p50, ms"],
        **figures.refusals(during, asked=math.ceil(rate * site.seconds)),
        "recovery, s": recovered if recovered < AFTER_S else f"not within {AFTER_S:g}",
    }


SCENARIOS: dict[str, Callable[[Site], Figures]] = {
    "1": partial(clients, number=ONE),
    "32": partial(clients, number=MANY),
    "known": known,
    "overload": overload,
}
CELLS = [
    Measurement(encoder, server, scenario)
    for encoder, server in product(LONGER, (*FLOORS, "default", "haproxy"))
    for scenario in SCENARIOS
    if scenario in ("1", "32")
    or (scenario == "known" and server == "haproxy")
    or (scenario == "overload" and encoder == "demo" and server not in FLOORS)
]


def measure(config: Config, flags: argparse.Namespace) -> dict[str, Any]:
    """Return figures of each cell, then the comparisons."""
    cells, found = select(flags.only), dict[Measurement, Figures]()
    with tempfile.TemporaryDirectory(prefix="raycd-") as name:
        scratch = Path(name)
        requests = scratch / "requests"
        bundles.write_requests(requests, bundles.image_ids(), config.data.synthetic.size)
        for encoder, of_encoder in groupby(cells, lambda cell: cell.encoder):
            bundle = _bundle(encoder, scratch, config)
            for server, of_server in groupby(of_encoder, lambda cell: cell.server):
                if server in FLOORS:
                    serving = servers.floor(bundle, FLOORS[server], scratch)
                else:
                    serving = servers.service(bundle, server, shlex.split(flags.service), scratch)
                with serving as port:
                    site = Site(port, requests, LONGER[encoder] * flags.seconds)
                    for cell in of_server:
                        print(f"{'/'.join(cell)} ...", flush=True)
                        found[cell] = SCENARIOS[cell.scenario](site)
    rows: dict[str, Any] = {"gallery": bundles.GALLERY, "cores": os.cpu_count()}
    rows["seconds of a scenario"] = flags.seconds
    for cell, of_cell in found.items():
        rows |= {f"{'/'.join(cell)}: {figure}": value for figure, value in of_cell.items()}
    return rows | compare(found)


def select(patterns: str) -> list[Measurement]:
    """Return the cells that one of the patterns, parted by commas, matches; "" gives all.

    Raises ConfigError where no cell matches.
    """
    wanted = [pattern.strip() for pattern in patterns.split(",") if pattern.strip()] or ["*"]
    cells = [cell for cell in CELLS if any(fnmatch("/".join(cell), pattern) for pattern in wanted)]
    if not cells:
        expected = f"patterns of {', '.join('/'.join(cell) for cell in CELLS)}"
        raise ConfigError("--only names nothing to measure", got=patterns, expected=expected)
    return cells


def compare(found: Mapping[Measurement, Figures]) -> Figures:
    """Return each comparison whose cells were measured, with its target in its name."""

    def of(figure: str, encoder: str, scenario: str, *names: str) -> list[float]:
        cells = [Measurement(encoder, server, scenario) for server in names]
        return [float(found[cell][figure]) for cell in cells if cell in found]

    rows: Figures = {}
    for (encoder, proxy), target in SLOWER_MS.items():
        name = f"{encoder}, {proxy}: p50 of one client beyond the floor's, ms (at most {target})"
        floors = of("p50, ms", encoder, "1", *FLOORS)
        for p50 in of("p50, ms", encoder, "1", proxy) if floors else []:
            rows[name] = p50 - min(floors)
    for (encoder, proxy), ratio in FASTER.items():
        name = f"{encoder}, {proxy}: successes/s of 32 clients : the floor's (at least {ratio})"
        floors = of("successes/s", encoder, "32", *FLOORS)
        for rate in of("successes/s", encoder, "32", proxy) if floors else []:
            rows[name] = rate / max(floors)
    for encoder, proxy in FASTER:
        for p50 in of("p50, ms", encoder, "32", proxy):
            [p99] = of("p99, ms", encoder, "32", proxy)
            rows[f"{encoder}, {proxy}: p99 : p50 of 32 clients (at most {TAIL})"] = p99 / p50
    return rows


def _bundle(encoder: str, scratch: Path, config: Config) -> Path:
    """Write a bundle with the gallery: of the run if there is one, else of random weights."""
    folder, trained = scratch / encoder / "bundle", Path(config.runs) / run_name(config) / "bundle"
    if encoder == "demo" and trained.is_dir():
        bundles.filled(trained, folder)
    else:
        bundles.random("ViT-B-32" if encoder == "vit" else "raycd-demo", folder)
    return folder
