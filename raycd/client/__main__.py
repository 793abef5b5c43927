"""The client on the command line.

    python -m raycd.client search --image x.jpg --text "is blue"
    python -m raycd.client batch searches.jsonl > answers.jsonl
    python -m raycd.client put DV1 --image x.jpg --category dress --attribute colour:blue
    python -m raycd.client import gallery.csv

Exit codes: 0 done, 2 a mistake that the user can mend or a service that refuses, 130 Ctrl-C, 141 a
pipe that nobody reads, 143 terminated.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence

from raycd.client import parser
from raycd.client.client import Client
from raycd.client.commands import COMMANDS
from raycd.client.transport import TIMEOUT_S, URL
from raycd.config import cli
from raycd.errors import RaycdError

EXIT_PIPE = 141


def main(argv: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> int:
    """Do what the command line says; returns the exit code."""
    options = parser.build().parse_args(argv)
    try:
        with cli.sigterm_interrupts(), _client(options, environment) as client:
            code = COMMANDS[options.command](client, options)
            sys.stdout.flush()
            return code
    except KeyboardInterrupt as interrupt:
        terminated = isinstance(interrupt, cli.Terminated)
        print("terminated" if terminated else "interrupted", file=sys.stderr)
        return cli.EXIT_TERMINATED if terminated else cli.EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # or the flush at exit complains again
        return EXIT_PIPE
    except RaycdError as error:
        return _failed(error)
    except OSError as error:
        return _failed(
            RaycdError(f"cannot read or write {error.filename or 'the output'}", got=error.strerror)
        )


def _client(options: argparse.Namespace, environment: Mapping[str, str]) -> Client:
    return Client(
        getattr(options, "url", None) or environment.get("RAYCD_URL") or URL,
        api_key=environment.get(
            "RAYCD_API_KEY"
        ),  # never an option: others on the machine can read those
        timeout=getattr(options, "timeout", TIMEOUT_S),
        retries=getattr(options, "retries", 4),
    )


def _failed(error: RaycdError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return cli.EXIT_MISTAKE


if __name__ == "__main__":
    sys.exit(main())
