"""Measure raycd against the plain way of doing the same, both in one run on the same cores.

python jobs/benchmark.py embed                       # Ray Data against a plain loop, 20,000 images
python jobs/benchmark.py embed --photos ../photos    # the same on a folder of real photographs
python jobs/benchmark.py mine                        # Ray's tasks against FAISS alone, 46,609 x 640
python jobs/benchmark.py train --preset demo         # both stages against bare loops of PyTorch
python jobs/benchmark.py sweep --preset demo         # a sweep's trials against naive ones
python jobs/benchmark.py serve --preset demo         # against FastAPI + torch + FAISS, 12 minutes
python jobs/benchmark.py gallery                     # 100,000 x 640 from SQLite, beside writes
python jobs/benchmark.py scale                       # the index of 10,000 to 1,000,000 x 640
python jobs/benchmark.py streaming                   # the driver's memory at 20,000 and 1,000,000
python jobs/benchmark.py stages --preset demo        # seconds and memory of each stage of a run
python jobs/benchmark.py contention --preset demo    # stage 1 beside a busy CPU, 15 minutes
python jobs/benchmark.py dialogues --preset demo     # sessions of edits, from the demo's bundle
python jobs/benchmark.py feedback --preset demo      # a simulated shop that learns from clicks
python jobs/benchmark.py decoding                    # in a process against the cluster's tasks
python jobs/benchmark.py gpu                         # RN50x4 on a GPU, without Ray (docs/gpu.md)
python jobs/benchmark.py line                        # the whole line on a GPU, through Ray

Prints a table and writes it to <runs>/benchmark-<what>.json.
"""

import argparse
import importlib
import json
import posixpath
import sys
from collections.abc import Sequence

import fsspec

from raycd.config import cli
from raycd.errors import ConfigError

WHAT = (
    *("embed", "mine", "train", "sweep", "serve", "gallery", "scale", "streaming"),
    *("stages", "contention", "dialogues", "feedback", "decoding", "gpu", "line"),
)
SERVICE = "--replicas 2 --threads 1 --cpus 0.5"  # for two cores
IMAGES = (
    "Images (embed, decoding: 20,000; mine: 46,609; gallery: 100,000; scale, streaming, search "
    "and mining of gpu: 1,000,000), or dialogues (1,000)."
)
CELLS = (
    "Cells to measure, such as 'demo/*,*/haproxy/32' (serve); import or beside (gallery); steps, "
    "such as mine,index (streaming); stage1 or stage2 (train); parts of gpu, line. (all)"
)
LEAST_IMAGES = {"mine": 65, "decoding": 512, "scale": 10, "dialogues": 2}  # of others one
READ_BY = {
    "images": ("embed", "decoding", "mine", "gallery", "scale", "streaming", "dialogues", "gpu"),
    "candidates": ("mine",),
    "only": ("serve", "gallery", "streaming", "train", "gpu", "line"),
    "seconds": ("serve", "gallery"),
    "service": ("serve", "gallery"),
    "photos": ("embed", "decoding"),
    "sessions": ("feedback",),
}
"""Which benchmarks read an option."""
OPTIONS = "Options of serve/app.py, such as '--threads 2' (serve, gallery; %(default)s)."
PHOTOS = "Folder of photographs to take instead of drawn images (embed, decoding)."
SESSIONS = "Searches of all cycles of the simulated shop (feedback; %(default)s)."
SECONDS = "Length of a scenario (serve, gallery; %(default)s)."


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="?", choices=WHAT, help="What to measure.")
    parser.add_argument("--images", type=int, default=0, help=IMAGES)
    candidates = "Candidates to score (mine)."
    parser.add_argument("--candidates", type=int, default=1_000_000, help=candidates)
    parser.add_argument("--only", default="", help=CELLS)
    parser.add_argument("--seconds", type=float, default=8.0, help=SECONDS)
    parser.add_argument("--service", default=SERVICE, help=OPTIONS)
    parser.add_argument("--photos", help=PHOTOS)
    parser.add_argument("--sessions", type=int, default=10_000, help=SESSIONS)


def _check(what: str, given: argparse.Namespace) -> None:
    """Raise ConfigError for options that this benchmark does not read, or impossible numbers."""
    usual = argparse.ArgumentParser()
    flags(usual)
    for name, readers in READ_BY.items():
        if what not in readers and getattr(given, name) != usual.get_default(name):
            raise ConfigError(
                f"{what} does not read --{name}",
                got=f"--{name} {getattr(given, name)}",
                expected=f"it with {' or '.join(readers)}",
                do="leave it out",
            )
    if given.images:
        cli.at_least("--images", given.images, LEAST_IMAGES.get(what, 1))
    cli.at_least("--candidates", given.candidates, 1)
    cli.at_least("--sessions", given.sessions, 1)
    cli.at_least("--seconds", given.seconds, 1)


def main(options: cli.Options) -> None:
    what = options.flags.what
    if what is None:
        raise ConfigError("nothing to measure is named", expected=f"one of {', '.join(WHAT)}")
    _check(what, options.flags)
    rows = importlib.import_module(f"jobs.benchmarks.{what}").measure(options.config, options.flags)
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:{width}}  {f'{value:.4g}' if isinstance(value, float) else value}")
    path = posixpath.join(options.config.runs, f"benchmark-{what}.json")
    with fsspec.open(path, "w", encoding="utf-8", auto_mkdir=True) as file:
        json.dump(rows, file, indent=1)
    print(f"written to {path}")


def program(argv: Sequence[str] | None = None, prog: str = "jobs/benchmark.py") -> int:
    """Do what the command line says, and return the exit code."""
    return cli.run(
        main,
        argv,
        prog=prog,
        description="Measure raycd against a plain loop.",
        flags=flags,
        again=cli.ANEW,
    )


if __name__ == "__main__":
    sys.exit(program())
