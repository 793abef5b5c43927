"""The command `raycd`: every program of raycd under one name.

    raycd train --preset demo          what `python jobs/train.py --preset demo` runs
    raycd serve --bundle runs/demo/bundle
    raycd client search --text "is blue"

A program is imported when it is asked for; with the base dependencies alone that is the client.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from raycd import __version__, program


class Program(NamedTuple):
    """A function (argv, prog=...) -> exit code, and what it is for."""

    module: str
    function: str
    text: str

    def run(self, argv: Sequence[str], prog: str) -> int:
        """Import and call it; return the exit code."""
        code: int = getattr(import_module(self.module), self.function)(argv, prog=prog)
        return code


PROGRAMS = {
    "train": Program("jobs.train", "program", "Train, mine, evaluate, index: the whole pipeline."),
    "embed": Program("jobs.embed", "program", "Embed images and texts with a frozen encoder."),
    "mine": Program("jobs.mine", "program", "Mine pseudo triplets and filter them."),
    "evaluate": Program("jobs.evaluate", "program", "Measure recall, offline or of a service."),
    "index": Program("jobs.index", "program", "Write the bundle that is served."),
    "feedback": Program("jobs.feedback", "program", "Make triplets of what people clicked."),
    "refresh": Program("jobs.refresh", "program", "Learn from feedback, and serve what is better."),
    "gallery": Program("jobs.gallery", "main", "Check, back up and restore a live gallery."),
    "serve": Program("serve.app", "main", "Answer composed queries over HTTP."),
    "keys": Program("serve.keys", "main", "Make, list and revoke API keys of a service."),
    "client": Program("raycd.client.__main__", "main", "Ask a service."),
    "sweep": Program("tune.sweep", "program", "Search the thresholds of mining on Ray Tune."),
    "compare": Program("jobs.compare", "program", "Compare fusion heads, with intervals."),
    "catalogue": Program("jobs.catalogue", "program", "Measure what a catalogue alone gives."),
    "ablate": Program("jobs.ablate", "program", "Make the paper's Table 2."),
    "pretrain": Program("jobs.pretrain", "program", "Pre-train the demo's small CLIP."),
    "benchmark": Program("jobs.benchmark", "program", "Measure raycd against a plain loop."),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program that the command line names, and return its exit code."""
    asked = _parser().parse_args(argv)
    chosen = PROGRAMS[asked.command]
    rest = asked.arguments
    return program.guard(lambda: chosen.run(rest, f"raycd {asked.command}"), rest)


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, PROGRAMS))
    lines = [f"  {name:{width}}  {program.text}" for name, program in PROGRAMS.items()]
    parser = argparse.ArgumentParser(
        prog="raycd",
        usage="raycd COMMAND ...",
        description="Composed image retrieval with CLIP-CD, trained and served on Ray.",
        epilog="\n".join(["commands:", *lines, "", "raycd COMMAND --help shows its options."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"raycd {__version__}")
    parser.add_argument("command", choices=PROGRAMS, metavar="COMMAND", help=argparse.SUPPRESS)
    rest = parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    rest.required = False  # argparse would ask for it by name
    return parser


if __name__ == "__main__":
    sys.exit(main())
