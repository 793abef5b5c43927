"""Mine pseudo triplets (3.2.3) and filter them (eq. 9 and alpha); earlier stages are done where they are not.

python jobs/mine.py --preset demo
python jobs/mine.py --preset demo --mine.alpha 0.7      other thresholds: seconds, the tables are there
"""

import sys

from raycd import cli


def main(options: cli.Options) -> None:
    from raycd import mine
    from raycd.runtime import pipeline

    outcome = pipeline.run(options.config, until="filter")
    filtered = pipeline.recorded(outcome.run, "filter")
    if "filter" not in outcome.done:  # else the stage itself has just said so
        print("\n".join([*mine.summary(filtered["counts"]), *(f"warning: {line}" for line in filtered["warnings"])]))
    mined = pipeline.recorded(outcome.run, "mine")
    if "mine" not in outcome.done:
        print("".join(f"warning: {line}\n" for line in mined["warnings"]), end="")
    for category, count in mined["counts"]["overlaps"].items():
        print(f"{count:,} train images stand in the val gallery of {category}, too")
    print(f"neighbours: {mine.searched_line(mined['index'])}")
    print(f"pseudo triplets: {outcome.run.path('filter', 'pseudo_triplets.parquet')}")


if __name__ == "__main__":
    sys.exit(cli.run(main, prog="jobs/mine.py", description="Mine pseudo triplets and filter them."))
