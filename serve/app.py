"""Serves a bundle on this machine, or describes how a Ray cluster is to serve it.

    python serve/app.py --bundle runs/demo/bundle                  until Ctrl-C, on http://127.0.0.1:8000
    python serve/app.py --bundle ... --proxy haproxy               the same with HAProxy in front: faster
    serve deploy serve/config.yaml                                 on a running cluster, through `build`

The first starts a small Ray of its own, or joins the one that RAY_ADDRESS names. Exit codes: 2 a
mistake that the user can fix, 75 Ray has died (start it again), 130 Ctrl-C, 143 terminated.
"""

import argparse
import os
import shlex
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Sequence
from ipaddress import ip_address
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from raycd.config import cli
from raycd.errors import RaycdError, RunError, WeightsError
from serve.args import NO_GALLERY, REGISTRY, ServeArgs
from serve.security import keyring
from serve.start import local, running

if TYPE_CHECKING:  # Ray and torch take seconds to import: a mistake of the user is told before
    from ray.serve import Application

UNGUARDED = """warning: the service listens on {host} without API keys: whoever reaches it may change the gallery
  to do:    python serve/keys.py add --file keys.json --name NAME --scope write, and give --api-keys keys.json"""


def build(args: ServeArgs) -> "Application":
    """The Ray Serve application, for config.yaml."""
    return running.application(args)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal; returns the exit code."""
    options = _parser().parse_args(argv)
    try:
        with cli.sigterm_interrupts():
            _serve(options)
        return 0
    except KeyboardInterrupt as interrupt:
        return _stopped(terminated=isinstance(interrupt, cli.Terminated))
    except SystemExit:  # a handler of Ray's, before ours is back
        return _stopped(terminated=True)
    except RaycdError as error:
        if options.debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return cli.EXIT_MISTAKE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="serve/app.py", description="Answer composed queries over HTTP."
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="Address to listen on; 0.0.0.0 is everyone's. (%(default)s)",
    )
    parser.add_argument("--port", type=_port, default=8000, help="Port to listen on. (%(default)s)")
    parser.add_argument(
        "--proxy",
        choices=("default", "haproxy"),
        default="default",
        help="What stands before the replicas: Ray Serve's own proxy, or HAProxy, which is faster and opens two more "
        "ports (docs/serving.md). (%(default)s)",
    )
    parser.add_argument(
        "--metrics-port", type=_port, help="Port of the metrics for Prometheus. (a free one)"
    )
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    for name, field in ServeArgs.model_fields.items():
        option, kind = f"--{name.replace('_', '-')}", type(field.default)
        text = f"{field.description} ({'none' if field.default in ('', ()) else field.default})"
        if kind is tuple:
            parser.add_argument(option, nargs="+", default=field.default, help=text, metavar="NAME")
        elif kind is bool:
            parser.add_argument(
                option, action=argparse.BooleanOptionalAction, default=field.default, help=text
            )
        else:
            parser.add_argument(
                option, type=kind, default=field.default, help=text, metavar=kind.__name__.upper()
            )
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number from 1 to 65535")
    return int(text)


def _serve(options: argparse.Namespace) -> None:
    asked = threading.Event()
    signal.signal(signal.SIGHUP, lambda *_: asked.set())
    local.is_ours()  # a wrong RAY_ADDRESS is told at once
    folder = _folder(options.bundle)
    local.check_free(options.host, options.port)
    args = _arguments(options, folder)
    if args.api_keys:
        keyring.read(Path(args.api_keys))
    elif not _is_loopback(options.host):
        print(UNGUARDED.format(host=options.host), file=sys.stderr)
    from raycd import bundle
    from raycd.runtime import watch

    manifest = bundle.verify(folder)
    with (
        local.cluster(
            args, haproxy=options.proxy == "haproxy", metrics_port=options.metrics_port
        ) as metrics,
        running.running(args, options.host, options.port),
    ):
        url = f"http://{_in_url(options.host)}:{options.port}"
        print(
            f"raycd serves {options.bundle} ({manifest.head['name']}, digest {manifest.digest[:12]}) on {url}"
        )
        text = shlex.quote(next(iter(manifest.example_texts), "is blue"))
        print(f"  curl -F image=@{_example(folder)} -F text={text} {url}/v1/search")
        print(f"  a page to try it on: {url}/    its API: {url}/docs    metrics: {metrics}")
        print(
            f"Ctrl-C stops it; kill -HUP {os.getpid()} has it look at the bundle again.", flush=True
        )
        with watch.port_answers(options.host, options.port):
            _until_stopped(args, options.bundle, asked, debug=options.debug)


def _until_stopped(
    args: ServeArgs, bundle: str, asked: threading.Event, *, debug: bool = False
) -> None:
    """Change to what `bundle` has become whenever it is asked for; where that fails, go on as
    before.
    """
    from serve.swap import Wanted

    good = Wanted(bundle=args.bundle)
    for number in count(1):
        while not asked.wait(3600):
            pass
        asked.clear()
        try:
            wanted = Wanted(bundle=_pinned(bundle) or args.bundle, again=number)
            told = running.change(args, wanted, good)
        except (
            Exception
        ) as error:  # of Ray, of the registry: none of them ends a service that answers
            if debug:
                traceback.print_exc()
            print(f"error: {_not_changed(error)}", file=sys.stderr, flush=True)
            continue
        if not told.refused:
            good = wanted
        refused = f"; the new one was refused: {told.refused}" if told.refused else ""
        print(f"raycd serves the bundle of digest {told.digest}{refused}", flush=True)


def _pinned(bundle: str) -> str:
    """The version of the registry that an alias names now, so that the way back leads there later;
    empty: a folder.
    """
    if not bundle.startswith(REGISTRY):
        return ""
    from raycd.runtime import registry

    return registry.pinned(bundle)


def _not_changed(error: Exception) -> RunError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    told = lines if isinstance(error, RaycdError) else [f"{type(error).__name__}: {lines[-1]}"]
    return RunError(
        "the bundle could not be changed, the service goes on",
        got="\n            ".join(told),
        do="mend that and send the signal again",
    )


def _folder(wanted: str) -> Path:
    """Where the bundle lies. Raises WeightsError and TrackingError."""
    if wanted.startswith(REGISTRY):
        from raycd.runtime import registry

        return registry.fetch(wanted)
    folder = Path(wanted).expanduser().absolute()
    if not (folder / "manifest.json").is_file():
        raise WeightsError(
            f"there is no bundle at {wanted}",
            expected="a folder with a manifest.json, as training writes it to runs/<name>/bundle",
            do="run make demo first, or name another folder with --bundle",
        )
    return folder


def _arguments(options: argparse.Namespace, folder: Path) -> ServeArgs:
    from pydantic import ValidationError

    given = {name: getattr(options, name) for name in ServeArgs.model_fields} | {
        "bundle": str(folder)
    }
    for name in ("api_keys", "gallery", "pictures"):  # replicas start in other folders
        if given[name] and given[name] != NO_GALLERY and "://" not in given[name]:
            given[name] = str(Path(given[name]).expanduser().absolute())
    if options.bundle.startswith(REGISTRY) and not options.gallery:
        raise RunError(
            "a bundle of the registry has no folder for a gallery beside it",
            do="name a database with --gallery, or none",
        )
    if not options.hosts and _is_loopback(options.host):
        given["hosts"] = ("127.0.0.1", "localhost", "[::1]", options.host)
    try:
        return ServeArgs(**given)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        option = str(detail["loc"][0]).replace("_", "-")
        raise RunError(
            f"--{option} is impossible", got=detail["input"], expected=detail["msg"]
        ) from error


def _is_loopback(host: str) -> bool:
    """Whether only this machine gets there."""
    return all(ip_address(found[4][0]).is_loopback for found in socket.getaddrinfo(host, None))


def _in_url(host: str) -> str:
    """Where this machine gets to what listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def _example(folder: Path) -> str:
    """An image of the gallery that the user can ask with, quoted for a shell."""
    import pyarrow.parquet as pq

    paths = pq.read_table(folder / "gallery.parquet", columns=["path"])["path"].to_pylist()
    return shlex.quote(next((path for path in paths if path and Path(path).is_file()), "photo.jpg"))


def _stopped(*, terminated: bool) -> int:
    print("stopped", file=sys.stderr)
    return cli.EXIT_TERMINATED if terminated else cli.EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
