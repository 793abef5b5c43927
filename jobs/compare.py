"""Compares fusion heads over one and the same fine-tuned encoder, with seeds and intervals.

    python jobs/compare.py --preset demo --heads all --seeds 5
    python jobs/compare.py --preset demo --heads combiner,bare=combiner,clip_cd \\
        --set bare.stage2.dropout=0 --baseline bare
    python jobs/compare.py --preset demo --heads all --choose stage2.dropout=0,0.2,0.5
    python jobs/compare.py --preset demo --table 2        the paper's ablation, with seeds

Every row trains with and without pseudo triplets, at equal epochs and at equal triplets seen. A
training is a cell, kept in <run>/compare/cells; started again, the same command trains what is
missing. Tables are printed and written beside them: comparison.md, .csv and .tex (docs/results.md).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from raycd.config import cli
from raycd.errors import ConfigError


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the options of this job alone."""
    parser.add_argument(
        "--heads",
        default="all",
        metavar="ROWS",
        help="Rows: all, or names of heads between commas; ROW=HEAD is a second row of a head.",
    )
    parser.add_argument(
        "--seeds", type=int, default=5, metavar="N", help="Trainings of each row, from seed on."
    )
    parser.add_argument(
        "--variants",
        default="original,pseudo",
        metavar="NAMES",
        help="original: without pseudo triplets; pseudo: with them.",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="ROW.SETTING=VALUE",
        help="A setting of one row, such as combiner.stage2.dropout=0. Repeatable.",
    )
    parser.add_argument(
        "--choose",
        default="",
        metavar="SETTING=VALUES",
        help="A setting that each row chooses for itself on the selection split, such as "
        "stage2.dropout=0,0.2,0.5.",
    )
    parser.add_argument(
        "--baseline",
        default="",
        metavar="ROW",
        help="Whom all others are compared with; default: combiner.",
    )
    parser.add_argument(
        "--table",
        type=int,
        choices=(1, 2),
        default=1,
        help="Of the paper: 1 heads, 2 the ablation.",
    )
    parser.add_argument(
        "--concurrent",
        type=int,
        default=0,
        metavar="N",
        help="Trainings at a time; 0: as many as fit, with a CPU left for everything else.",
    )


def main(options: cli.Options) -> None:
    """Train what is missing, and print and write the tables."""
    from jobs.comparison import ablation, heads

    flags = options.flags
    cli.at_least("--concurrent", flags.concurrent, 0)
    if flags.table == 2:
        _check_ablation(flags)
        shown, _ = ablation.run(options.config, seeds=flags.seeds, concurrent=flags.concurrent)
    else:
        shown = heads.run(options.config, flags)
    print(shown)


def _check_ablation(asked: argparse.Namespace) -> None:
    """Raise ConfigError where an option would change nothing of the ablation."""
    parser = argparse.ArgumentParser()
    flags(parser)
    usual, names = parser.parse_args([]), ("heads", "variants", "set", "choose", "baseline")
    given = [name for name in names if getattr(asked, name) != getattr(usual, name)]
    if given:
        raise ConfigError(
            "--table 2 is the paper's ablation: its rows are given",
            got=", ".join(f"--{name}" for name in given),
            expected="--seeds and --concurrent alone beside it",
            do="leave them out, or compare heads without --table 2",
        )


def program(argv: Sequence[str] | None = None, prog: str = "jobs/compare.py") -> int:
    """Do what the command line says, and return the exit code."""
    return cli.run(
        main,
        argv,
        prog=prog,
        description="Compare fusion heads over one encoder, with seeds and intervals.",
        flags=flags,
    )


if __name__ == "__main__":
    sys.exit(program())
