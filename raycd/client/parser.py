"""The options of `raycd client`."""

from __future__ import annotations

import argparse
import re
from typing import Any

from raycd.client.transport import TIMEOUT_S, URL
from raycd.errors import DataError

_IMPORT = """import gallery.csv --report report.jsonl

A line of JSON Lines is an object of image_id, image (a file), category (one or a list) and
attributes; instead of or beside image, feature (numbers, or base64 of little-endian float32) and
encoder. A table (.csv, .parquet) is a gallery table of docs/data.md: image_id, path, category,
attributes or further columns. Paths start from the file's folder, or from --root, which is
data.root where the table is that of a training.
An import that was stopped may be run again as it is."""


def build(prog: str) -> argparse.ArgumentParser:
    """Return the parser; `command` of its result is the subcommand."""
    everywhere = _everywhere()
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Ask a raycd service.",
        epilog="The environment variable RAYCD_API_KEY has the API key, if the service needs one.",
        parents=[everywhere],
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, example: str = "") -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"example:\n  {prog} {example}" if example else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=[everywhere],
        )

    _search(
        command(
            "search",
            "Find images by an image, a text, or both.",
            'search --image x.jpg --text "is blue"',
        )
    )
    batch = command("batch", "Answer every line of a JSON Lines file, as JSON Lines.")
    searches = 'Searches, such as {"image": "x.jpg", "text": "is blue"}; - is standard input.'
    batch.add_argument("file", help=searches)
    _user(batch)
    _gallery(command("gallery", "List images of the gallery."))
    _image(command("image", "Fetch the picture of an image of the gallery."))
    example = "put DV1 --image x.jpg --category dress --attribute colour:blue"
    _put(command("put", "Add an image to the gallery, or replace the one of that id.", example))
    delete = command(
        "delete",
        "Remove images from the gallery; exit code 2 where one is not there.",
        "delete DV1 DV2",
    )
    delete.add_argument("image_ids", nargs="+", metavar="image_id")
    delete.add_argument(
        "--missing-ok", action="store_true", help="One that is not there is no failure."
    )
    _import(
        command(
            "import", "Add or replace the images of a file; exit code 2 where one failed.", _IMPORT
        )
    )
    command("galleries", "List the galleries that the key is for.")
    command("info", "Show the model, the index, the limits and the categories.")
    command("ready", "Show whether the service answers searches; exit code 2 if not.")
    return parser


def attributes(pairs: list[str]) -> dict[str, list[str]]:
    """Group pairs: ["colour:blue", "colour:red"] -> {"colour": ["blue", "red"]}."""
    wanted: dict[str, list[str]] = {}
    for pair in pairs:
        name, _, value = pair.partition(":")
        wanted.setdefault(name, []).append(value)
    return wanted


def condition(text: str) -> tuple[str, str, str]:
    """Split a condition: "price >= 10" -> ("price", "gte", "10")."""
    found = re.fullmatch(r"([^<>!=]+)(<=|>=|!=|<|>)(.+)", text, re.DOTALL)
    if found is None or not all(part.strip() for part in found.groups()):
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected a name, one of < <= > >= !=, and a value, such as 'price>=10'"
        )
    name, sign, value = (part.strip() for part in found.groups())
    return name, {"<": "lt", "<=": "lte", ">": "gt", ">=": "gte", "!=": "not"}[sign], value


def filters(
    pairs: list[str], conditions: list[tuple[str, str, str]]
) -> dict[str, list[str] | dict[str, Any]]:
    """Return what a search wants of attributes, of options --attribute and --where."""
    wanted: dict[str, list[str] | dict[str, Any]] = {**attributes(pairs)}
    for name, word, value in conditions:
        known = wanted.get(name, {})
        parts = wanted[name] = known if isinstance(known, dict) else {"in": known}
        if word == "not":
            parts.setdefault(word, []).append(value)
        elif word in parts:
            raise DataError("a bound is given twice", got=f"{name} {word} {value}")
        else:
            parts[word] = value
    return wanted


def labels(pairs: list[str]) -> dict[str, str]:
    """Return an image's attributes: ["colour:blue"] -> {"colour": "blue"}.

    Raises:
        DataError: An attribute has several values.
    """
    for name, values in (named := attributes(pairs)).items():
        if len(values) > 1:
            what = f"the image has {len(values)} values of an attribute"
            raise DataError(what, got=name, expected="one of each")
    return {name: value for name, [value] in named.items()}


def _everywhere() -> argparse.ArgumentParser:
    """Return the parser of options before or after the subcommand.

    They have no defaults: those of the subcommand's parser would replace values of the first one.
    """
    parser = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--url", help=f"The service's url. (RAYCD_URL, or {URL})")
    parser.add_argument("--gallery", metavar="NAME", help="Which gallery. (the service's default)")
    parser.add_argument(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        help=f"Of each wait of a try for the service. ({TIMEOUT_S:g})",
    )
    parser.add_argument(
        "--retries", type=_count, metavar="N", help="Times that a busy service is asked again. (4)"
    )
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    return parser


def _user(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--user", default="", help="Who asks, for a service that splits users between models."
    )


def _search(parser: argparse.ArgumentParser) -> None:
    """Add an option for each field of SearchRequest, without defaults: the service has its own."""
    parser.argument_default = argparse.SUPPRESS
    image = parser.add_mutually_exclusive_group()
    image.add_argument("--image", metavar="FILE", help="The reference image.")
    image.add_argument("--image-id", metavar="ID", help="An image of the gallery as the reference.")
    image.add_argument(
        "--image-url", metavar="URL", help="Where the service fetches it, if it is allowed to."
    )
    parser.add_argument("--text", help="What should differ: is blue.")
    parser.add_argument(
        "--negative-text", metavar="TEXT", help="What results should not look like."
    )
    parser.add_argument(
        "--image-weight", type=float, metavar="W", help="0 to 10; 1 is the model's own balance."
    )
    parser.add_argument("--text-weight", type=float, metavar="W", help="Likewise for the text.")
    parser.add_argument("--top-k", type=int, metavar="K", help="Results wanted.")
    parser.add_argument(
        "--offset", type=int, metavar="N", help="Results left out at the beginning."
    )
    _user(parser)
    _filters(parser)
    parser.add_argument(
        "--exclude-reference", action="store_true", help="Leave the image of --image-id out."
    )
    parser.add_argument(
        "--exact", action="store_true", help="Compare with every image, whatever the index."
    )
    parser.add_argument(
        "--rerank-depth",
        type=int,
        metavar="N",
        help="First candidates that a model which re-ranks puts in its own order; 0: none.",
    )
    parser.add_argument(
        "--boost",
        type=_boost,
        metavar="NAME:WEIGHT",
        help="Move results by the numbers of an attribute: price:-0.1.",
    )
    parser.add_argument(
        "--near-duplicates", choices=("show", "hide"), help="hide: of almost the same, the best."
    )
    parser.add_argument("--group-by", metavar="NAME", help="One result for each of its values.")
    parser.add_argument(
        "--diversity", type=float, metavar="D", help="0 to 1; above 0 results are unlike others."
    )


def _gallery(parser: argparse.ArgumentParser) -> None:
    parser.argument_default = argparse.SUPPRESS
    parser.add_argument("--offset", type=int, metavar="N", help="Images left out at the beginning.")
    parser.add_argument("--limit", type=int, metavar="N", help="Images of the page.")
    _filters(parser)


def _image(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image_id")
    parser.add_argument(
        "--size", choices=("thumbnail", "original"), default="thumbnail", help="(%(default)s)"
    )
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="Where to write it; - is standard output."
    )
    _min_version(parser)


def _put(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image_id")
    parser.add_argument("--image", required=True, metavar="FILE", help="Its picture.")
    parser.add_argument(
        "--category", action="append", default=[], help="Its category; again for one more."
    )
    parser.add_argument(
        "--attribute",
        action="append",
        type=_pair,
        default=[],
        dest="attributes",
        metavar="NAME:VALUE",
        help="One of its attributes; again for one more.",
    )


def _import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", help="JSON Lines, .csv or .parquet; - is JSON Lines on standard input."
    )
    parser.add_argument(
        "--root", metavar="DIR", help="Where relative paths of images start. (the file's folder)"
    )
    parser.add_argument(
        "--report", metavar="FILE", help="Where to write what became of each image, as JSON Lines."
    )


def _filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--category", action="append", help="Only this category, or one of these if given again."
    )
    parser.add_argument(
        "--attribute",
        action="append",
        type=_pair,
        dest="attributes",
        metavar="NAME:VALUE",
        help="Only images with it, or with one of its values if given again.",
    )
    parser.add_argument(
        "--where",
        action="append",
        type=condition,
        metavar="CONDITION",
        help="Only images whose attribute fits: 'price>=10', 'price<50', 'brand!=none'.",
    )
    _min_version(parser)


def _min_version(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--min-version", type=_count, metavar="V", help="Wait for this version of the gallery."
    )


def _pair(text: str) -> str:
    if not text.partition(":")[0] or ":" not in text:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected name:value, such as colour:blue")
    return text


def _boost(text: str) -> dict[str, Any]:
    name, _, weight = text.rpartition(":")
    try:
        return {"attribute": name, "weight": float(weight)}
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected name:weight, such as price:-0.1"
        ) from None


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected seconds above 0")
    return seconds


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number from 0")
    return int(text)
