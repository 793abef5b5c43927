"""The client on the command line.

    python -m raycd.client search --image x.jpg --text "is blue"
    python -m raycd.client batch searches.jsonl > answers.jsonl

Exit codes: 0 done, 2 a mistake that the user can mend or a service that refuses, 130 Ctrl-C, 141 a pipe that nobody
reads, 143 terminated.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import cast

from pydantic import BaseModel

from raycd import cli
from raycd.client import lines, parser, table
from raycd.client.client import TIMEOUT_S, URL, Client
from raycd.client.errors import printable
from raycd.client.request import Search
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit complains again
        return EXIT_PIPE
    except RaycdError as error:
        return _failed(error)
    except OSError as error:
        return _failed(RaycdError(f"cannot read or write {error.filename or 'the output'}", got=error.strerror))


def _client(options: argparse.Namespace, environment: Mapping[str, str]) -> Client:
    return Client(
        getattr(options, "url", None) or environment.get("RAYCD_URL") or URL,
        api_key=environment.get("RAYCD_API_KEY"),  # never an option: others on the machine can read those
        timeout=getattr(options, "timeout", TIMEOUT_S),
        retries=getattr(options, "retries", 4),
    )


def _failed(error: RaycdError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return cli.EXIT_MISTAKE


def _search(client: Client, options: argparse.Namespace) -> int:
    given = {name: value for name, value in vars(options).items() if name in Search.__annotations__}
    asked = cast(Search, given)
    if "attributes" in asked:
        asked["attributes"] = parser.attributes(options.attributes)
    found = client.search(**asked)
    for warning in found.warnings:
        print(f"warning: {printable(warning)}", file=sys.stderr)
    return _print(found, table.results(found, offset=asked.get("offset", 0)), options)


def _batch(client: Client, options: argparse.Namespace) -> int:
    failed = total = 0
    with ExitStack() as stack:
        source = sys.stdin.buffer if options.file == "-" else stack.enter_context(Path(options.file).open("rb"))
        for number, item in lines.answer(client, source):
            told = {name: value for name, value in item.model_dump(mode="json").items() if value is not None}
            print(json.dumps({"line": number, **told}), flush=True)
            total += 1
            failed += item.problem is not None
    if failed:
        print(f"{failed} of {total} searches failed: see their problems", file=sys.stderr)
    return cli.EXIT_MISTAKE if failed else 0


def _gallery(client: Client, options: argparse.Namespace) -> int:
    page = client.gallery(
        offset=getattr(options, "offset", 0),
        limit=getattr(options, "limit", None),
        category=getattr(options, "category", None),
        attributes=parser.attributes(getattr(options, "attributes", [])),
    )
    return _print(page, table.gallery(page), options)


def _image(client: Client, options: argparse.Namespace) -> int:
    picture = client.image(options.image_id, size=options.size)
    if options.out == "-":
        sys.stdout.buffer.write(picture)
    else:
        Path(options.out).write_bytes(picture)
    return 0


def _info(client: Client, options: argparse.Namespace) -> int:
    told = client.info()
    return _print(told, table.info(told), options)


def _ready(client: Client, options: argparse.Namespace) -> int:
    health = client.ready()
    replicas = "" if health.replicas is None else f" ({health.replicas} replicas)"
    return _print(health, f"{health.status}{replicas}", options)


def _print(answer: BaseModel, text: str, options: argparse.Namespace) -> int:
    print(answer.model_dump_json(indent=2) if hasattr(options, "json") else text)
    return 0


COMMANDS = {
    "search": _search,
    "batch": _batch,
    "gallery": _gallery,
    "image": _image,
    "info": _info,
    "ready": _ready,
}


if __name__ == "__main__":
    sys.exit(main())
