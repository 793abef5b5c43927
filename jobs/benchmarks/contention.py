"""Stage 1 beside another program that keeps one of the machine's CPUs busy, with and without what
raycd sets for it.

Each training is a process of its own, for Ray and OpenMP read these settings once.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from raycd import progress
from raycd.config import Config

SETTINGS = ("RAY_worker_niceness", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
WITHOUT = {
    "RAY_worker_niceness": "15",
    "GOMP_SPINCOUNT": "300000",
}  # what Ray and OpenMP do where nobody says a word

_RUN = """
import sys

from raycd.config import cli


def main(options):
    from raycd.runtime import pipeline

    pipeline.run(options.config, until=options.flags.until)


sys.exit(cli.run(main, prog="", description="", flags=lambda parser: parser.add_argument("--until")))
"""


def measure(config: Config, flags: argparse.Namespace) -> dict[str, Any]:
    """Triplets per second of stage 1's second epoch, quiet and with one CPU busy, and the ratios
    that are promised.

    A quiet machine's rate may fall by 5% at most by the settings, and 0.55 of it must be left
    beside a busy CPU. Each quiet way is measured twice, the faster counts: anything else that runs
    here makes both slower.
    """
    with tempfile.TemporaryDirectory(prefix="raycd-") as scratch:
        place = Path(scratch)
        config = config.model_copy(
            update={
                "name": "run",
                "runs": str(place / "before"),
                "stage1": config.stage1.model_copy(update={"epochs": 2}),
                "tracking": config.tracking.model_copy(update={"enabled": False}),
            }
        )
        _train(config, place, until="zero_shot")
        quiet, plain_quiet = 0.0, 0.0
        for _ in range(2):
            quiet = max(quiet, _rate(config, place, "quiet, as raycd sets it"))
            plain_quiet = max(
                plain_quiet, _rate(config, place, "quiet, as Ray and OpenMP are", **WITHOUT)
            )
        with _one_cpu_busy():
            busy = _rate(config, place, "one CPU busy, as raycd sets it")
            plain_busy = _rate(config, place, "one CPU busy, as Ray and OpenMP are", **WITHOUT)
    return {
        "cores": os.cpu_count(),
        "quiet, triplets/s": quiet,
        "quiet without the settings, triplets/s": plain_quiet,
        "one CPU busy, triplets/s": busy,
        "one CPU busy without the settings, triplets/s": plain_busy,
        "quiet with the settings / without (at least 0.95)": quiet / plain_quiet,
        "one CPU busy / quiet (at least 0.55 of two cores)": busy / quiet,
        "one CPU busy / quiet, without the settings": plain_busy / plain_quiet,
    }


def _rate(config: Config, place: Path, what: str, **environment: str) -> float:
    """Triplets per second of the second epoch, when the images have been read."""
    from raycd.runtime import pipeline

    runs = place / "now"
    shutil.copytree(place / "before", runs)
    config = config.model_copy(update={"runs": str(runs)})
    _train(config, place, until="stage1", **environment)
    record = pipeline.recorded(pipeline.run_folder(config), "stage1")
    shutil.rmtree(runs)
    rate = float(record["history"][-1]["rows_per_second"])
    progress.say(f"{what}: {rate:.1f} triplets/s")
    return rate


def _train(config: Config, place: Path, *, until: str, **environment: str) -> None:
    settings = place / "settings.yaml"
    settings.write_text(config.model_dump_json(), encoding="utf-8")  # JSON is YAML
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in (*SETTINGS, "RAY_ADDRESS")
        and not name.startswith("RAYCD_")  # `config` has them
    }
    command = [sys.executable, "-c", _RUN, "--config", str(settings), "--until", until]
    subprocess.run(command, env=inherited | environment, check=True, stdout=subprocess.DEVNULL)


@contextmanager
def _one_cpu_busy() -> Iterator[None]:
    with ExitStack() as stack:
        other = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
        stack.callback(other.kill)
        yield
