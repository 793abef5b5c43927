"""The command `raycd client import`: it imports a file and reports failures at once."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from raycd import program, progress
from raycd.api import ImportItem
from raycd.client.client import Client
from raycd.client.errors import printable
from raycd.errors import ConfigError

TABLES = (".csv", ".parquet")


@dataclass
class _Tally:
    settled: int = 0
    done: int = 0
    version: int = 0

    def add(self, item: ImportItem) -> None:
        self.settled += 1
        self.done += item.problem is None
        self.version = max(self.version, item.version or 0)

    def __str__(self) -> str:
        version = f", version {self.version:,}" if self.version else ""
        return f"{self.done:,} of {self.settled:,} images are in the gallery{version}"


def import_images(client: Client, options: argparse.Namespace) -> int:
    """Import a file; return the exit code, 2 where an image failed."""
    tally = _Tally()
    with ExitStack() as stack:
        items, root = _source(options.file, stack)
        root = root if options.root is None else Path(options.root)
        report = stack.enter_context(_report(options)) if options.report else None
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
                    line = f"line {item.line}"
                    name = line if item.image_id is None else f"{item.image_id!r} ({line})"
                    progress.say(printable(f"{name}: {item.problem.detail}"))
                if bar:
                    bar.advance()
        except BaseException:  # Ctrl-C, too: show how much is on the service's disk
            if tally.settled:
                progress.say(f"stopped: {tally}; others may be: import the same again")
            raise
    counts = {"images": tally.settled, "imported": tally.done, "version": tally.version or None}
    print(json.dumps(counts) if hasattr(options, "json") else tally)
    return 0 if tally.done == tally.settled else program.EXIT_MISTAKE


def _report(options: argparse.Namespace) -> TextIO:
    """Open the report. Raises ConfigError where it is the file of the images itself."""
    path = Path(options.report)
    if path.exists() and Path(options.file).exists() and path.samefile(options.file):
        raise ConfigError(
            "the report would replace the images",
            got=f"--report {options.report}",
            do="give it another name",
        )
    return path.open("w", encoding="utf-8")


def _source(file: str, stack: ExitStack) -> tuple[Iterable[bytes | Mapping[str, Any]], Path]:
    """Return the images of a file, and the folder where the paths in it start."""
    if file == "-":
        return sys.stdin.buffer, Path()
    path = Path(file)
    if path.suffix.lower() not in TABLES:
        return stack.enter_context(path.open("rb")), path.parent
    # Imported here: it imports Arrow, which takes long, and no other command needs it.
    from raycd.client import gallery_table

    return gallery_table.read(path), path.parent
