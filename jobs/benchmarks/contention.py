"""Stage 1 beside a program that keeps one CPU busy, with and without what raycd sets for that.

Each training is a process of its own, for Ray and OpenMP read these settings once.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from jobs.benchmarks.measuring import exit_code
from raycd import progress
from raycd.config import Config
from raycd.errors import RunError
from raycd.runtime import pipeline

# What Ray and OpenMP do where nobody sets it. Their variables are taken from the environment first.
WITHOUT = {"RAY_worker_niceness": "15", "GOMP_SPINCOUNT": "300000"}
SETTINGS = (*WITHOUT, "OMP_WAIT_POLICY", "RAY_ADDRESS")

_RUN = """
import sys
from raycd.config import cli

def main(options):
    from raycd.runtime import pipeline
    pipeline.run(options.config, until=options.flags.until)

flags = lambda parser: parser.add_argument("--until")
sys.exit(cli.run(main, prog="", description="", flags=flags))
"""


def measure(config: Config, flags: argparse.Namespace) -> dict[str, Any]:
    """Return triplets per second of stage 1's second epoch, quiet and with one CPU busy.

    A quiet machine's rate may fall by 5% at most by the settings, and 0.55 of it must be left
    beside a busy CPU. Each quiet way is measured twice, the faster counts: anything else that runs
    here makes both slower.
    """
    with tempfile.TemporaryDirectory(prefix="raycd-") as name:
        scratch = Path(name)
        stage1 = config.stage1.model_copy(update={"epochs": 2})
        tracking = config.tracking.model_copy(update={"enabled": False})
        changes = {"name": "run", "stage1": stage1, "tracking": tracking}
        config = config.model_copy(update=changes | {"runs": str(scratch / "before")})
        _train(config, scratch, until="zero_shot")
        quiet, plain_quiet = 0.0, 0.0
        for _ in range(2):
            quiet = max(quiet, _rate(config, scratch, "quiet, as raycd sets it"))
            plain = _rate(config, scratch, "quiet, as Ray and OpenMP are", **WITHOUT)
            plain_quiet = max(plain_quiet, plain)
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
            try:
                busy = _rate(config, scratch, "one CPU busy, as raycd sets it")
                plain_busy = _rate(
                    config, scratch, "one CPU busy, as Ray and OpenMP are", **WITHOUT
                )
            finally:
                other.kill()
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


def _rate(config: Config, scratch: Path, what: str, **environment: str) -> float:
    """Return triplets per second of the second epoch, when the images have been read."""
    runs = scratch / "now"
    shutil.copytree(scratch / "before", runs)
    config = config.model_copy(update={"runs": str(runs)})
    _train(config, scratch, until="stage1", **environment)
    record = pipeline.recorded(pipeline.run_folder(config), "stage1")
    shutil.rmtree(runs)
    rate = float(record["history"][-1]["rows_per_second"])
    progress.say(f"{what}: {rate:.1f} triplets/s")
    return rate


def _train(config: Config, scratch: Path, *, until: str, **environment: str) -> None:
    settings = scratch / "settings.yaml"
    settings.write_text(config.model_dump_json(), encoding="utf-8")  # JSON is YAML
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in SETTINGS and not name.startswith("RAYCD_")  # `config` has them
    }
    command = [sys.executable, "-c", _RUN, "--config", str(settings), "--until", until]
    code = exit_code(command, env=inherited | environment, stdout=subprocess.DEVNULL)
    if code:  # it has said why
        raise RunError(f"a training that is measured ended with exit code {code}")
