"""Makes the paper's Table 2: what fine-tuning, pseudo triplets and bilinear pooling add.

    python jobs/ablate.py --preset demo                with the run's one seed
    python jobs/compare.py --preset demo --table 2     the same with five seeds, hence intervals

Three runs stand beside the run itself: <name>-text, <name>-image and <name>-both, named after what
stage 1 fine-tunes. The variants of stage 2 are trained on the features and pseudo triplets of
<name>-both. The table is also written to <runs>/<name>-ablation.json.
"""

import argparse
import json
import posixpath
import sys
from collections.abc import Sequence
from typing import Any

import fsspec

from raycd.config import cli


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the options of this job alone."""
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="Trainings of each head, from seed on."
    )


def main(options: cli.Options) -> None:
    """Train what is missing, print the table, and write it."""
    from jobs.comparison import ablation
    from jobs.comparison.results import FAILED
    from raycd.report.table import recall_table
    from raycd.runtime import pipeline

    config, seeds = options.config, getattr(options.flags, "seeds", 1)
    shown, made = ablation.run(config, seeds=seeds)
    variants: dict[str, dict[str, dict[str, Any]]] = {}
    for line in (line for lines in made.lines for line in lines):
        recalls = variants.setdefault(line.method.name, {}).setdefault(line.metric.category, {})
        recalls[f"recall@{line.metric.k}"] = line.spread.mean
    table = {
        "preset": config.preset,
        "protocol": config.evaluate.protocol,
        "seed": config.seed,
        "seeds": seeds,
        "variants": variants,
    }
    path = posixpath.join(config.runs, f"{pipeline.run_name(config)}-ablation.json")
    with fsspec.open(path, "w", encoding="utf-8") as file:
        json.dump(table, file, indent=1)
    failed = [note for note in made.notes if note.startswith(FAILED)]
    print("\n".join([recall_table(table), *failed]) if seeds == 1 else shown)
    print(f"\ntable: {path}")


def program(argv: Sequence[str] | None = None, prog: str = "jobs/ablate.py") -> int:
    """Do what the command line says, and return the exit code."""
    return cli.run(
        main,
        argv,
        prog=prog,
        description="The paper's Table 2: what each part brings.",
        flags=flags,
    )


if __name__ == "__main__":
    sys.exit(program())
