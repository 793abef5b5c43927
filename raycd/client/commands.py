"""The commands of `raycd client`; each function returns the exit code."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import cast

from pydantic import BaseModel

from raycd import program
from raycd.api import GalleryList
from raycd.client import lines, parser, table
from raycd.client.client import Client
from raycd.client.errors import ServiceError, printable
from raycd.client.import_command import import_images
from raycd.client.request import Search


def _search(client: Client, options: argparse.Namespace) -> int:
    given = {name: value for name, value in vars(options).items() if name in Search.__annotations__}
    asked = cast(Search, given)
    wanted = parser.filters(getattr(options, "attributes", []), getattr(options, "where", []))
    if wanted:
        asked["attributes"] = wanted
    found = client.search(
        min_version=getattr(options, "min_version", None), user=options.user, **asked
    )
    _warn(found.warnings)
    return _print(found, table.results(found, offset=asked.get("offset", 0)), options)


def _batch(client: Client, options: argparse.Namespace) -> int:
    failed = total = 0
    with ExitStack() as stack:
        source = (
            sys.stdin.buffer
            if options.file == "-"
            else stack.enter_context(Path(options.file).open("rb"))
        )
        for number, item in lines.answer(client, source, user=options.user):
            fields = item.model_dump(mode="json")
            shown = {name: value for name, value in fields.items() if value is not None}
            print(json.dumps({"line": number, **shown}), flush=True)
            total += 1
            failed += item.problem is not None
    if failed:
        print(f"{failed} of {total} searches failed: see their problems", file=sys.stderr)
    return program.EXIT_MISTAKE if failed else 0


def _gallery(client: Client, options: argparse.Namespace) -> int:
    page = client.gallery(
        offset=getattr(options, "offset", 0),
        limit=getattr(options, "limit", None),
        category=getattr(options, "category", None),
        attributes=parser.filters(
            getattr(options, "attributes", []), getattr(options, "where", [])
        ),
        min_version=getattr(options, "min_version", None),
    )
    _warn(page.warnings)
    return _print(page, table.gallery(page), options)


def _image(client: Client, options: argparse.Namespace) -> int:
    picture = client.image(options.image_id, size=options.size, min_version=options.min_version)
    if options.out == "-":
        sys.stdout.buffer.write(picture)
    else:
        Path(options.out).write_bytes(picture)
    return 0


def _put(client: Client, options: argparse.Namespace) -> int:
    written = client.put(
        options.image_id,
        options.image,
        category=options.category,
        attributes=parser.labels(options.attributes),
    )
    return _print(written, table.written(written), options)


def _delete(client: Client, options: argparse.Namespace) -> int:
    code = 0
    for image_id in options.image_ids:
        try:
            written = client.delete(image_id, missing_ok=options.missing_ok)
        except ServiceError as error:
            if error.status != 404:
                raise
            print(f"error: {error}", file=sys.stderr)
            code = program.EXIT_MISTAKE
            continue
        if written is None:
            print(f"the gallery has no image {image_id!r}", file=sys.stderr)
        else:
            _print(written, table.deleted(written), options)
    return code


def _info(client: Client, options: argparse.Namespace) -> int:
    info = client.info()
    return _print(info, table.info(info), options)


def _galleries(client: Client, options: argparse.Namespace) -> int:
    found = GalleryList(galleries=client.galleries())
    return _print(found, table.galleries(found), options)


def _ready(client: Client, options: argparse.Namespace) -> int:
    health = client.ready()
    replicas = "" if health.replicas is None else f" ({health.replicas} replicas)"
    return _print(health, f"{health.status}{replicas}", options)


def _warn(warnings: list[str]) -> None:
    for warning in warnings:
        print(f"warning: {printable(warning)}", file=sys.stderr)


def _print(answer: BaseModel, text: str, options: argparse.Namespace) -> int:
    print(answer.model_dump_json(indent=2) if hasattr(options, "json") else text)
    return 0


COMMANDS = {
    "search": _search,
    "batch": _batch,
    "gallery": _gallery,
    "image": _image,
    "put": _put,
    "delete": _delete,
    "import": import_images,
    "galleries": _galleries,
    "info": _info,
    "ready": _ready,
}
