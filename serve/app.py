"""Serves a bundle on this machine, or describes how a Ray cluster is to serve it.

    python serve/app.py --bundle runs/demo/bundle                  until Ctrl-C, on http://127.0.0.1:8000
    python serve/app.py --bundle ... --proxy haproxy               the same with HAProxy in front: faster
    serve deploy serve/config.yaml                                 on a running cluster, through `build`

The first starts a small Ray of its own, or joins the one that RAY_ADDRESS names.
Exit codes: 2 a mistake that the user can mend, 130 Ctrl-C, 143 terminated.
"""

import argparse
import shlex
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from raycd import cli
from raycd.errors import RaycdError, RunError, WeightsError
from serve import local
from serve.args import ServeArgs

if TYPE_CHECKING:  # Ray and torch take seconds to import: a mistake of the user is told before
    from ray.serve import Application

NAME = "raycd"  # of the Serve application
QUIET = {"log_level": "WARNING", "enable_access_log": False}


def build(args: ServeArgs) -> "Application":
    """The Ray Serve application of a bundle."""
    from serve.service import SearchService

    application: Application = SearchService.options(  # type: ignore[attr-defined]
        num_replicas=args.replicas,
        ray_actor_options={"num_cpus": args.cpus, "num_gpus": args.gpus},
        logging_config=QUIET,  # a line a request takes as long as parsing it
        max_ongoing_requests=4 * args.max_queue + 64,  # beyond max_queue a replica itself refuses, with a problem
        max_queued_requests=4 * args.max_queue + 64,
    ).bind(args)
    return application


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
    parser = argparse.ArgumentParser(prog="serve/app.py", description="Answer composed queries over HTTP.")
    parser.add_argument(
        "--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 is everyone's. (%(default)s)"
    )
    parser.add_argument("--port", type=_port, default=8000, help="Port to listen on. (%(default)s)")
    parser.add_argument(
        "--proxy",
        choices=("default", "haproxy"),
        default="default",
        help="What stands before the replicas: Ray Serve's own proxy, or HAProxy, which is faster and opens two more "
        "ports (docs/serving.md). (%(default)s)",
    )
    parser.add_argument("--metrics-port", type=_port, help="Port of the metrics for Prometheus. (a free one)")
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    for name, field in ServeArgs.model_fields.items():
        option, kind = f"--{name.replace('_', '-')}", type(field.default)
        text = f"{field.description} ({field.default})"
        if kind is tuple:
            parser.add_argument(option, nargs="+", default=field.default, help=text, metavar="NAME")
        elif kind is bool:
            parser.add_argument(option, action=argparse.BooleanOptionalAction, default=field.default, help=text)
        else:
            parser.add_argument(option, type=kind, default=field.default, help=text, metavar=kind.__name__.upper())
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number from 1 to 65535")
    return int(text)


def _serve(options: argparse.Namespace) -> None:
    folder = Path(options.bundle).expanduser().absolute()
    if not (folder / "manifest.json").is_file():
        raise WeightsError(
            f"there is no bundle at {options.bundle}",
            expected="a folder with a manifest.json, as training writes it to runs/<name>/bundle",
            do="run make demo first, or name another folder with --bundle",
        )
    local.check_free(options.host, options.port)
    args = _arguments(options, folder)
    from raycd.model import bundle

    manifest = bundle.verify(folder)
    with (
        local.cluster(args, haproxy=options.proxy == "haproxy", metrics_port=options.metrics_port) as metrics,
        _running(args, options.host, options.port),
    ):
        url = f"http://{'127.0.0.1' if options.host == '0.0.0.0' else options.host}:{options.port}"
        print(f"raycd serves {options.bundle} ({manifest.head['name']}, {manifest.index.size} images) on {url}")
        print(f'  curl -F image=@{_example(folder)} -F text="is blue with long sleeves" {url}/v1/search')
        print(f"  a page to try it on: {url}/    its API: {url}/docs    metrics: {metrics}")
        print("Ctrl-C stops it.", flush=True)
        while True:
            time.sleep(3600)


def _arguments(options: argparse.Namespace, folder: Path) -> ServeArgs:
    from pydantic import ValidationError

    given = {name: getattr(options, name) for name in ServeArgs.model_fields}
    try:
        return ServeArgs(**given | {"bundle": str(folder)})
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        option = str(detail["loc"][0]).replace("_", "-")
        raise RunError(f"--{option} is impossible", got=detail["input"], expected=detail["msg"]) from error


@contextmanager
def _running(args: ServeArgs, host: str, port: int) -> Iterator[None]:
    """The application, from ready to gone."""
    from ray import serve

    with cli.sigterm_interrupts():  # ray.init has put its own handler in place of ours
        try:
            http = {"host": host, "port": port, "request_timeout_s": 2 * args.timeout_s}
            serve.start(proxy_location="HeadOnly", http_options=http, logging_config=QUIET)
            serve.run(build(args), name=NAME, route_prefix="/", blocking=False)
            yield
        except RuntimeError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise RunError(
                "the service did not start",
                got=lines[-1] if lines else type(error).__name__,
                do="see it whole with --debug",
            ) from error
        finally:
            if local.is_ours():
                serve.shutdown()  # type: ignore[no-untyped-call]
            else:
                serve.delete(NAME)  # others may have applications there


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
