"""Measures the recall of pre-trained CLIP, fine-tuned CLIP and fusion head, after earlier stages.

python jobs/evaluate.py --preset demo
python jobs/evaluate.py --preset demo --evaluate.ks 1,5,10,50    other ranks: nothing is trained
"""

import sys

from raycd.config import cli


def main(options: cli.Options) -> None:
    from raycd.report.table import final_table
    from raycd.runtime import pipeline

    run = pipeline.run(options.config, until="evaluate").run
    print(final_table(pipeline.recorded(run, "evaluate")))


if __name__ == "__main__":
    sys.exit(
        cli.run(
            main, prog="jobs/evaluate.py", description="Measure the recall of every variant on val."
        )
    )
