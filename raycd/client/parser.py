"""The options of `python -m raycd.client`."""

from __future__ import annotations

import argparse

from raycd.client.client import TIMEOUT_S, URL


def build() -> argparse.ArgumentParser:
    """The parser; `command` of what it reads is the subcommand."""
    everywhere = _everywhere()
    parser = argparse.ArgumentParser(
        prog="python -m raycd.client",
        description="Ask a raycd service.",
        epilog="The environment variable RAYCD_API_KEY holds the API key, where the service wants one.",
        parents=[everywhere],
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[everywhere])

    _search(command("search", "Find images by an image, a text, or both."))
    batch = command("batch", "Answer every line of a JSON Lines file, as JSON Lines.")
    batch.add_argument("file", help='Searches, such as {"image": "x.jpg", "text": "is blue"}; - is standard input.')
    _gallery(command("gallery", "List images of the gallery."))
    image = command("image", "Fetch the picture of an image of the gallery.")
    image.add_argument("image_id")
    image.add_argument("--size", choices=("thumbnail", "original"), default="thumbnail", help="(%(default)s)")
    image.add_argument("--out", required=True, metavar="FILE", help="Where to write it; - is standard output.")
    command("info", "Tell the model, the index, the limits and the categories.")
    command("ready", "Tell whether the service answers searches; exit code 2 if not.")
    return parser


def attributes(pairs: list[str]) -> dict[str, list[str]]:
    """["colour:blue", "colour:red"] -> {"colour": ["blue", "red"]}."""
    wanted: dict[str, list[str]] = {}
    for pair in pairs:
        name, _, value = pair.partition(":")
        wanted.setdefault(name, []).append(value)
    return wanted


def _everywhere() -> argparse.ArgumentParser:
    """Options before or after the subcommand: without defaults, or the second parser would undo the first one's."""
    parser = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--url", help=f"The service's url. (RAYCD_URL, or {URL})")
    parser.add_argument("--timeout", type=_seconds, metavar="SECONDS", help=f"Of one try. ({TIMEOUT_S:g})")
    parser.add_argument("--retries", type=_count, metavar="N", help="Times that a busy service is asked again. (4)")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")
    return parser


def _search(parser: argparse.ArgumentParser) -> None:
    """Each option has the name of a field of SearchRequest, and no default: the service has its own."""
    parser.argument_default = argparse.SUPPRESS
    image = parser.add_mutually_exclusive_group()
    image.add_argument("--image", metavar="FILE", help="The reference image.")
    image.add_argument("--image-id", metavar="ID", help="An image of the gallery as the reference.")
    image.add_argument("--image-url", metavar="URL", help="Where the service fetches it, if it is allowed to.")
    parser.add_argument("--text", help="What should differ: is blue.")
    parser.add_argument("--negative-text", metavar="TEXT", help="What results should not look like.")
    parser.add_argument("--image-weight", type=float, metavar="W", help="0 to 10; 1 is the model's own balance.")
    parser.add_argument("--text-weight", type=float, metavar="W", help="Likewise for the text.")
    parser.add_argument("--top-k", type=int, metavar="K", help="Results wanted.")
    parser.add_argument("--offset", type=int, metavar="N", help="Results left out at the beginning.")
    _filters(parser)
    parser.add_argument("--exclude-reference", action="store_true", help="Leave the image of --image-id out.")
    parser.add_argument("--exact", action="store_true", help="Compare with every image, whatever the index.")


def _gallery(parser: argparse.ArgumentParser) -> None:
    parser.argument_default = argparse.SUPPRESS
    parser.add_argument("--offset", type=int, metavar="N", help="Images left out at the beginning.")
    parser.add_argument("--limit", type=int, metavar="N", help="Images of the page.")
    _filters(parser)


def _filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--category", action="append", help="Only this category, or one of these if given again.")
    parser.add_argument(
        "--attribute",
        action="append",
        type=_pair,
        dest="attributes",
        metavar="NAME:VALUE",
        help="Only images with it, or with one of its values if given again.",
    )


def _pair(text: str) -> str:
    if not text.partition(":")[0] or ":" not in text:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected name:value, such as colour:blue")
    return text


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
