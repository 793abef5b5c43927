"""Mines pseudo triplets (3.2.3) and filters them (eq. 9 and alpha), after earlier stages.

python jobs/mine.py --preset demo
python jobs/mine.py --preset demo --mine.alpha 0.7    other thresholds: the tables are there
"""

import sys
from collections.abc import Sequence

from raycd.config import cli


def main(options: cli.Options) -> None:
    from raycd.report import mining
    from raycd.runtime import pipeline

    outcome = pipeline.run(options.config, until="filter")
    filtered = pipeline.recorded(outcome.run, "filter")
    mined = pipeline.recorded(outcome.run, "mine")
    for line in mining.summary(filtered["counts"]):
        print(line)
    for line in [*filtered["warnings"], *mined["warnings"]]:
        print(f"warning: {line}")
    print(
        f"{mined['counts']['held_out']:,} images of the selection split are held out: "
        "none of them is a substitute"
    )
    for category, count in mined["counts"]["overlaps"].items():
        print(f"{count:,} train images stand in the val gallery of {category}, too")
    print(f"neighbours: {mining.searched_line(mined['index'])}")
    print(f"pseudo triplets: {outcome.run.path('filter', 'pseudo_triplets.parquet')}")


def program(argv: Sequence[str] | None = None, prog: str = "jobs/mine.py") -> int:
    """Do what the command line says, and return the exit code."""
    return cli.run(main, argv, prog=prog, description="Mine pseudo triplets and filter them.")


if __name__ == "__main__":
    sys.exit(program())
