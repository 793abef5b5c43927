"""Measures what a catalogue alone gives, beside its own train triplets, on its val triplets.

    python jobs/catalogue.py --preset demo --seeds 5 --compose.wording demo --adapt.epochs 4 ...
    python jobs/catalogue.py --preset catalogue --name shop --data.root DIR --data.gallery \\
        gallery.csv --data.triplets triplets.csv --seeds 5

Three runs a seed, in folders of their own (<name>-<run>-<seed>), each of which continues where it
was: `titles` has a head that learns from titles alone, `composed` trains on composed triplets,
`own` on the data set's train triplets, which the others do not see. The table is printed and
written beside the runs, <name>-catalogue.md (docs/catalogue.md).
"""

from __future__ import annotations

import argparse
import posixpath
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raycd.config import cli
from raycd.errors import ConfigError

if TYPE_CHECKING:
    from raycd.compare.lines import Method, Table
    from raycd.config import Config

RUNS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "titles": {
        "compose": {"when": "withhold"},
        "stage2": {"head": "lincir", "hard_negatives": 0},  # its loss takes none
    },
    "composed": {"compose": {"when": "instead"}},
    "own": {"compose": {"when": "never"}, "adapt": {"epochs": 0}},
}
ROWS = (  # run, variant (HEAD: that of the settings), what it is called
    ("composed", "zero_shot", "pre-trained, sum"),
    ("composed", "adapted", "adapted to titles, sum"),
    ("titles", "lincir", "text-only head"),
    ("composed", "fine_tuned", "composed triplets, sum"),
    ("composed", "HEAD", "composed triplets, head"),
    ("own", "fine_tuned", "own triplets, sum"),
    ("own", "HEAD", "own triplets, head"),
)
ZERO, ALONE, OWN = ROWS[0][2], ROWS[4][2], ROWS[6][2]


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the options of this job alone."""
    parser.add_argument(
        "--seeds", type=int, default=5, metavar="N", help="Trainings of each run, from seed on."
    )


def main(options: cli.Options) -> None:
    """Run what is missing, and print and write the table."""
    from raycd.compare.writing import grid
    from raycd.data.read import read
    from raycd.run import open_uri
    from raycd.runtime import pipeline
    from raycd.runtime.stages import reading

    config = options.config
    cli.at_least("--seeds", options.flags.seeds, 1)
    name = pipeline.run_name(config)
    reading.check_asked_once(config)
    drawn = config.data.format == "synthetic"
    if not drawn and not len(read(config.data).triplets_of("val")):
        raise ConfigError(
            "there are no val triplets to measure on",
            do="add a table of triplets with split val (data.triplets)",
        )
    seeds = range(config.seed, config.seed + options.flags.seeds)
    found = {(run, seed): _measured(config, name, run, seed) for seed in seeds for run in RUNS}
    shown = grid(_table(config, found, list(seeds)), costs=False).markdown()
    file_system, path = open_uri(posixpath.join(config.runs, f"{name}-catalogue.md"))
    file_system.pipe_file(path, f"{shown}\n".encode())
    print(f"{shown}\n\ntable: {path}")


def _measured(config: Config, name: str, run: str, seed: int) -> dict[str, Any]:
    """Run one of RUNS up to its evaluation; return the ranks by variant, and val's categories."""
    from raycd.config import Config
    from raycd.runtime import pipeline
    from raycd.runtime.stages.context import Context

    tree = config.model_dump()
    for section, values in RUNS[run].items():
        tree[section] |= values
    own = Config.model_validate({**tree, "name": f"{name}-{run}-{seed}", "seed": seed})
    outcome = pipeline.run(own, until="evaluate")
    val = Context(own, outcome.run).dataset.triplets_of("val")
    return {
        "ranks": pipeline.recorded(outcome.run, "evaluate")["ranks"],
        "categories": dict(
            zip(val["triplet_id"].to_pylist(), val["category"].to_pylist(), strict=True)
        ),
    }


def _table(config: Config, found: Mapping[tuple[str, int], Any], seeds: Sequence[int]) -> Table:
    from raycd.compare.lines import Table, against
    from raycd.evaluate import Metric

    metrics = [Metric(k=k) for k in config.evaluate.ks]
    made = [_method(config, found, seeds, *row) for row in ROWS]
    methods = {method.name: method for method in made if method is not None}
    many = "mean ± standard deviation [95% interval over seeds]; Δ to the pre-trained sum"
    notes = [
        f"val, protocol {config.evaluate.protocol}, {len(methods[ZERO].answers.categories):,} "
        f"queries, seeds {', '.join(map(str, seeds))}; "
        + (f"{many}." if len(seeds) > 1 else "one seed, hence no intervals."),
        f"Head: {config.stage2.head}. Wording: {config.compose.wording}.",
        *(_gap(methods, metric) for metric in metrics if OWN in methods),
    ]
    lines = against(list(methods.values()), dict.fromkeys(methods, methods[ZERO]), metrics)
    return Table("catalogue", "A catalogue alone, recall in per cent", metrics, lines, notes)


def _method(
    config: Config,
    found: Mapping[tuple[str, int], Any],
    seeds: Sequence[int],
    run: str,
    variant: str,
    what: str,
) -> Method | None:
    """Return a row of the table; None where the data set has not what it is made of."""
    from raycd.compare.answers import Answers
    from raycd.compare.lines import Method

    own = config.stage2.head if variant == "HEAD" else variant
    known = found[run, seeds[0]]["ranks"]
    untrained = run == "own" and config.stage2.head not in known  # there are no train triplets
    if own not in known or untrained:
        return None
    categories = found[run, seeds[0]]["categories"]
    ranks = [[found[run, s]["ranks"][own][key] for key in categories] for s in seeds]
    trained = None if variant == "zero_shot" else list(seeds)
    rows = ranks if trained else ranks[:1]
    return Method(what, Answers.of(rows, list(categories.values()), trained))


def _gap(methods: Mapping[str, Method], metric: Any) -> str:
    """Return how much of the way from the pre-trained sum to own triplets a catalogue goes."""
    zero, alone, own = (methods[name].answers.spread(metric).mean for name in (ZERO, ALONE, OWN))
    if own <= zero:
        return f"{metric}: own triplets are no better than the pre-trained sum."
    share = (alone - zero) / (own - zero)
    return f"{metric}: composed triplets close {share:.0%} of the gap to own triplets."


def program(argv: Sequence[str] | None = None, prog: str = "jobs/catalogue.py") -> int:
    """Do what the command line says, and return the exit code."""
    return cli.run(
        main,
        argv,
        prog=prog,
        description="Measure what a catalogue alone gives, beside its own train triplets.",
        flags=flags,
    )


if __name__ == "__main__":
    sys.exit(program())
