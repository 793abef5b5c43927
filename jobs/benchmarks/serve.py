"""The service against the floor: the same bundle, cores and load generator, one server at a time.

What is measured is a list of cells, encoder/server/scenario; --only takes patterns of them, and
--service options that every service is started with:

    python jobs/benchmark.py serve --preset demo --only 'demo/floor*,demo/haproxy/32' --service='--threads 2'

The floor (serving/floor.py) runs with one torch thread and with two; it is judged by the better
figure of both.
"""

from __future__ import annotations

import argparse
import os
import shlex
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from itertools import groupby
from pathlib import Path
from typing import Any

from jobs.benchmarks.serving import bundles, comparison, material, servers
from jobs.benchmarks.serving.comparison import FLOORS, Cell
from jobs.benchmarks.serving.figures import Figures
from jobs.benchmarks.serving.scenarios import MANY, ONE, Site, clients, known, overload
from raycd.config import Config
from raycd.errors import ConfigError
from raycd.runtime.pipeline import run_name

SCENARIOS: dict[str, Callable[[Site], Figures]] = {
    "1": lambda site: clients(site, ONE),
    "32": lambda site: clients(site, MANY),
    "known": known,
    "overload": overload,
}
CELLS: tuple[Cell, ...] = (
    *(Cell("demo", floor, scenario) for floor in FLOORS for scenario in ("1", "32")),
    *(Cell("demo", "default", scenario) for scenario in ("1", "32", "overload")),
    *(Cell("demo", "haproxy", scenario) for scenario in ("1", "32", "known", "overload")),
    *(Cell("vit", floor, scenario) for floor in FLOORS for scenario in ("1", "32")),
    *(Cell("vit", "default", scenario) for scenario in ("1", "32")),
    *(Cell("vit", "haproxy", scenario) for scenario in ("1", "32", "known")),
)
LONGER = {"demo": 1, "vit": 2}  # a batch of ViT-B-32 takes seconds, and a rate needs some of them


def measure(config: Config, flags: argparse.Namespace) -> dict[str, Any]:
    """Figures of each cell, then the comparisons with their targets. Raises ConfigError where
    --only names no cell.
    """
    cells = select(flags.only)
    found: dict[Cell, Figures] = {}
    with tempfile.TemporaryDirectory(prefix="raycd-") as name:
        scratch = Path(name)
        material.write(scratch / "material", bundles.image_ids(), config.data.synthetic.size)
        for encoder, of_encoder in groupby(cells, lambda cell: cell.encoder):
            bundle = _bundle(encoder, scratch, config)
            for server, of_server in groupby(of_encoder, lambda cell: cell.server):
                with _serving(server, bundle, shlex.split(flags.service), scratch) as port:
                    site = Site(port, str(scratch / "material"), LONGER[encoder] * flags.seconds)
                    for cell in of_server:
                        print(f"{'/'.join(cell)} ...", flush=True)
                        found[cell] = SCENARIOS[cell.scenario](site)
    rows: dict[str, Any] = {
        "gallery": bundles.GALLERY,
        "cores": os.cpu_count(),
        "seconds of a scenario": flags.seconds,
    }
    for cell, of_cell in found.items():
        rows |= {f"{'/'.join(cell)}: {figure}": value for figure, value in of_cell.items()}
    return rows | comparison.rows(found)


def select(patterns: str) -> list[Cell]:
    """The cells that one of the patterns, parted by commas, matches; all where there is none."""
    wanted = [pattern.strip() for pattern in patterns.split(",") if pattern.strip()] or ["*"]
    cells = [cell for cell in CELLS if any(fnmatch("/".join(cell), pattern) for pattern in wanted)]
    if not cells:
        names = ", ".join("/".join(cell) for cell in CELLS)
        raise ConfigError(
            "--only names nothing to measure", got=patterns, expected=f"patterns of {names}"
        )
    return cells


def _bundle(encoder: str, scratch: Path, config: Config) -> Path:
    """A bundle with the gallery: the run's where there is one, else of random weights, which are as
    fast.
    """
    folder, trained = scratch / encoder / "bundle", Path(config.runs) / run_name(config) / "bundle"
    if encoder == "vit":
        bundles.random("ViT-B-32", folder)
    elif trained.is_dir():
        bundles.filled(trained, folder)
    else:
        bundles.random("raycd-demo", folder)
    return folder


@contextmanager
def _serving(server: str, bundle: Path, options: list[str], scratch: Path) -> Iterator[int]:
    if server in FLOORS:
        running = servers.floor(bundle, FLOORS[server], scratch)
    else:
        running = servers.service(bundle, server, options, scratch)
    with running as port:
        yield port
