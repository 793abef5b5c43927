"""Trains both stages, mines, evaluates, indexes, bundles and reports: the main job, end to end.

python jobs/train.py --preset demo
python jobs/train.py --preset fashioniq --data.root /data/fashion-iq
"""

import math
import os
import sys
from collections.abc import Sequence

from raycd import progress
from raycd.config import cli


def main(options: cli.Options) -> None:
    from raycd.report.table import final_table
    from raycd.runtime import pipeline
    from raycd.runtime.record import tracking
    from raycd.train import forecast

    here = not os.environ.get("RAY_ADDRESS")  # which names a cluster of other machines
    known = here and forecast.knows(options.config)
    if known and not pipeline.run_folder(options.config).record("encoder"):
        minutes = math.ceil(forecast.demo_seconds() / 60)
        progress.say(f"the demo takes about {minutes} min on this machine")
    outcome = pipeline.run(options.config)
    assert outcome.metrics is not None
    print(final_table(outcome.metrics))
    print(f"\nreport:  {outcome.run.path('report.html')}")
    print(f"metrics: {outcome.run.path('metrics.json')}")
    print(f"bundle:  {outcome.run.path('bundle')}")
    print(f"MLflow:  {tracking.how_to_see(options.config)}")


def program(argv: Sequence[str] | None = None, prog: str = "jobs/train.py") -> int:
    """Do what the command line says, and return the exit code."""
    return cli.run(
        main, argv, prog=prog, description="Train, mine, fuse, evaluate and index CLIP-CD."
    )


if __name__ == "__main__":
    sys.exit(program())
