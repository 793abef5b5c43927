"""`python -m raycd.client import`: a file into the gallery; failures as they come, and at the end
how many are in.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raycd import progress
from raycd.api import ImportItem
from raycd.client.client import Client
from raycd.client.errors import printable
from raycd.config import cli

TABLES = (".csv", ".parquet")


@dataclass
class _Tally:
    told: int = 0
    done: int = 0
    version: int = 0

    def add(self, item: ImportItem) -> None:
        self.told += 1
        self.done += item.problem is None
        self.version = max(self.version, item.version or 0)

    def __str__(self) -> str:
        version = f", version {self.version:,}" if self.version else ""
        return f"{self.done:,} of {self.told:,} images are in the gallery{version}"


def import_images(client: Client, options: argparse.Namespace) -> int:
    """Import a file; returns the exit code, 2 where an image failed."""
    tally = _Tally()
    with ExitStack() as stack:
        items, root = _source(options.file, stack)
        root = root if options.root is None else Path(options.root)
        report = stack.enter_context(Path(options.report).open("w")) if options.report else None
        bar = (
            stack.enter_context(progress.Bar("import", unit="images"))
            if sys.stderr.isatty()
            else None
        )
        try:
            for item in client.import_images(items, root=root):
                tally.add(item)
                if report:
                    report.write(f"{item.model_dump_json(exclude_none=True)}\n")
                if item.problem:
                    name = (
                        f"line {item.line}"
                        if item.image_id is None
                        else f"{item.image_id!r} (line {item.line})"
                    )
                    progress.say(printable(f"{name}: {item.problem.detail}"))
                if bar:
                    bar.advance()
        except BaseException:  # Ctrl-C, too: what is on the service's disk is worth knowing
            if tally.told:
                progress.say(f"stopped: {tally}; others may be: import the same again")
            raise
    counts = {"images": tally.told, "imported": tally.done, "version": tally.version or None}
    print(json.dumps(counts) if hasattr(options, "json") else tally)
    return 0 if tally.done == tally.told else cli.EXIT_MISTAKE


def _source(file: str, stack: ExitStack) -> tuple[Iterable[bytes | Mapping[str, Any]], Path]:
    """The images of a file, and where the paths in it start."""
    if file == "-":
        return sys.stdin.buffer, Path()
    path = Path(file)
    if path.suffix.lower() not in TABLES:
        return stack.enter_context(path.open("rb")), path.parent
    from raycd.client import manifest  # Arrow takes long to import, and no other command needs it

    return manifest.read(path), path.parent
