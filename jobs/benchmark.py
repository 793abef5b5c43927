"""Measure raycd against the plain way of doing the same, both in one run on the same cores.

python jobs/benchmark.py embed                        # Ray Data against a plain loop, 20,000 drawn images
python jobs/benchmark.py embed --photos ../photos     # the same on a folder of real photographs
python jobs/benchmark.py mine                         # Ray Data against one search by FAISS, 46,609 x 640
python jobs/benchmark.py sweep --preset demo          # a sweep's trials against embedding and mining for each
python jobs/benchmark.py serve --preset demo          # the service against FastAPI + torch + FAISS, 12 minutes
python jobs/benchmark.py gallery                      # loading 100,000 x 640 from SQLite, writes beside searches
python jobs/benchmark.py scale                        # the index from 10,000 to 1,000,000 images of 640
python jobs/benchmark.py contention --preset demo     # stage 1 beside a program that keeps one CPU busy, 15 minutes
python jobs/benchmark.py gpu                          # RN50x4 on this machine's GPU, without Ray (docs/gpu.md)

Prints a table and writes it to <runs>/benchmark-<what>.json.
"""

import argparse
import json
import posixpath
import sys

import fsspec

from raycd.config import cli

SERVICE = "--replicas 2 --threads 1 --cpus 0.5"  # for two cores


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        choices=["embed", "mine", "sweep", "serve", "gallery", "scale", "contention", "gpu"],
        help="What to measure.",
    )
    parser.add_argument(
        "--images",
        type=int,
        default=0,
        help="Images (embed: 20,000; mine: 46,609; gallery: 100,000; scale: 1,000,000).",
    )
    parser.add_argument(
        "--candidates", type=int, default=1_000_000, help="Candidates to score (mine)."
    )
    parser.add_argument(
        "--only", default="", help="Cells to measure, such as 'demo/*,*/haproxy/32' (serve: all)."
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=8.0,
        help="Length of a scenario (serve, gallery; %(default)s).",
    )
    parser.add_argument(
        "--service",
        default=SERVICE,
        help="Options of serve/app.py, such as '--threads 2' (serve, gallery; %(default)s).",
    )
    parser.add_argument(
        "--photos", help="Folder of photographs to embed instead of drawn images (embed)."
    )


def main(options: cli.Options) -> None:
    if options.flags.what == "embed":
        from benchmarks.embed import measure
    elif options.flags.what == "mine":
        from benchmarks.mine import measure
    elif options.flags.what == "sweep":
        from benchmarks.sweep import measure
    elif options.flags.what == "serve":
        from benchmarks.serve import measure
    elif options.flags.what == "gallery":
        from benchmarks.gallery import measure
    elif options.flags.what == "scale":
        from benchmarks.scale import measure
    elif options.flags.what == "contention":
        from benchmarks.contention import measure
    else:
        from benchmarks.gpu import measure
    rows = measure(options.config, options.flags)
    width = max(map(len, rows))
    for name, value in rows.items():
        print(
            f"{name:{width}}  {value:.4g}"
            if isinstance(value, float)
            else f"{name:{width}}  {value}"
        )
    place = posixpath.join(options.config.runs, f"benchmark-{options.flags.what}.json")
    with fsspec.open(place, "w", encoding="utf-8", auto_mkdir=True) as file:
        json.dump(rows, file, indent=1)
    print(f"written to {place}")


if __name__ == "__main__":
    sys.exit(
        cli.run(
            main,
            prog="jobs/benchmark.py",
            description="Measure raycd against a plain loop.",
            flags=flags,
            again=cli.ANEW,
        )
    )
