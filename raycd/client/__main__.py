"""The client on the command line.

    python -m raycd.client search --image x.jpg --text "is blue"
    python -m raycd.client batch searches.jsonl > answers.jsonl
    python -m raycd.client put DV1 --image x.jpg --category dress --attribute colour:blue
    python -m raycd.client import gallery.csv

Exit codes: raycd/program.py; 2 is also a service that refuses.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence

from raycd import program
from raycd.client import parser
from raycd.client.client import Client
from raycd.client.commands import COMMANDS
from raycd.client.transport import TIMEOUT_S, URL
from raycd.errors import RaycdError


def main(
    argv: Sequence[str] | None = None,
    environment: Mapping[str, str] = os.environ,
    prog: str = "python -m raycd.client",
) -> int:
    """Do what the command line says, and return the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    options = parser.build(prog).parse_args(argv)
    return program.guard(lambda: _run(options, environment), argv)


def _run(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    try:
        with _client(options, environment) as client:
            return COMMANDS[options.command](client, options)
    except BrokenPipeError:  # the guard's
        raise
    except OSError as error:
        raise RaycdError(
            f"cannot read or write {error.filename or 'the output'}", got=error.strerror
        ) from error


def _client(options: argparse.Namespace, environment: Mapping[str, str]) -> Client:
    return Client(
        getattr(options, "url", None) or environment.get("RAYCD_URL") or URL,
        # Never an option: others on the machine can read those.
        api_key=environment.get("RAYCD_API_KEY"),
        gallery=getattr(options, "gallery", ""),
        timeout=getattr(options, "timeout", TIMEOUT_S),
        retries=getattr(options, "retries", 4),
    )


if __name__ == "__main__":
    sys.exit(main())
