"""Serves a bundle on this machine, or describes how a Ray cluster is to serve it.

    python serve/app.py --bundle runs/demo/bundle                  until Ctrl-C, on http://127.0.0.1:8000
    serve deploy serve/config.yaml                                 on a running cluster, through `build`

The first starts a small Ray of its own, or joins the one that RAY_ADDRESS names.
Exit codes: 2 a mistake that the user can mend, 130 Ctrl-C, 143 terminated.
"""

import argparse
import logging
import os
import shlex
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from raycd import cli
from raycd.errors import RaycdError, RunError, WeightsError
from serve.schemas import ServeArgs

if TYPE_CHECKING:  # Ray and torch take seconds to import: a mistake of the user is told before
    from ray.serve import Application

NAME = "raycd"  # of the Serve application


def build(args: ServeArgs) -> "Application":
    """The Ray Serve application of a bundle."""
    from serve.service import SearchService

    application: Application = SearchService.options(  # type: ignore[attr-defined]
        num_replicas=args.replicas,
        ray_actor_options={"num_cpus": args.cpus, "num_gpus": args.gpus},
        max_ongoing_requests=2 * args.max_batch_size,  # one batch at work and one that gathers
        max_queued_requests=8 * args.max_batch_size,  # beyond it: 503
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
    fields = ServeArgs.model_fields
    parser.add_argument("--bundle", default=fields["bundle"].default, help="Folder of the bundle. (%(default)s)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 is everyone's. (%(default)s)"
    )
    parser.add_argument("--port", type=_port, default=8000, help="Port to listen on. (%(default)s)")
    for name, kind in (("replicas", int), ("threads", int), ("gpus", float)):
        default = fields[name].default
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{fields[name].description} ({default})")
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
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
    _check_free(options.host, options.port)
    args = _arguments(options, folder)
    from raycd.model import bundle

    manifest = bundle.verify(folder)
    with _ray(args), _running(args, options.host, options.port):
        url = f"http://{'127.0.0.1' if options.host == '0.0.0.0' else options.host}:{options.port}"
        print(f"raycd serves {options.bundle} ({manifest.head['name']}, {manifest.index.size} images) on {url}")
        print(f'  curl -F image=@{_example(folder)} -F text="is blue with long sleeves" {url}/v1/search')
        print("Ctrl-C stops it.", flush=True)
        while True:
            time.sleep(3600)


def _arguments(options: argparse.Namespace, folder: Path) -> ServeArgs:
    from pydantic import ValidationError

    try:
        return ServeArgs(bundle=str(folder), replicas=options.replicas, threads=options.threads, gpus=options.gpus)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        raise RunError(f"--{detail['loc'][0]} is impossible", got=detail["input"], expected=detail["msg"]) from error


def _check_free(host: str, port: int) -> None:
    """Raises RunError where nothing can listen on host:port."""
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port just left is free
            probe.bind(address)
            probe.listen()
    except OSError as error:
        raise RunError(
            f"cannot listen on {host}:{port}",
            got=error.strerror or error,
            expected="an address of this machine and a free port",
            do="stop what uses the port, or give --port another",
        ) from error


@contextmanager
def _ray(args: ServeArgs) -> Iterator[None]:
    """Ray for this process: the cluster that RAY_ADDRESS names, or a new one that ends with us."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # tell nobody
    if not os.environ.get("RAY_ADDRESS"):
        # A cluster of our own, without dashboard and gone with us: a token would only leave a file in the user's HOME.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    import ray

    if os.environ.get("RAY_ADDRESS"):
        try:
            ray.init(log_to_driver=False, logging_level=logging.WARNING)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise RunError(
                "the Ray cluster cannot be reached",
                got=f"RAY_ADDRESS={os.environ['RAY_ADDRESS']}: {error}",
                do="start it, mend RAY_ADDRESS, or unset it to use a Ray of its own",
            ) from error
    else:
        ray.init("local", include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    try:
        if not os.environ.get("RAY_ADDRESS"):  # a cluster may grow, a machine does not
            _check_room(args, ray.cluster_resources())  # type: ignore[no-untyped-call]
        yield
    finally:
        ray.shutdown()


def _check_room(args: ServeArgs, resources: dict[str, float]) -> None:
    """Raises RunError where Ray would wait for ever for what the machine does not have."""
    for name, each in (("CPU", args.cpus), ("GPU", args.gpus)):
        wanted, there = args.replicas * each, resources.get(name, 0.0)
        if wanted > there:
            raise RunError(
                f"this machine has too few {name}s for the replicas",
                got=f"{there:g} {name}s",
                expected=f"{wanted:g}: {args.replicas} replicas of {each:g}",
                do="give fewer --replicas" if name == "CPU" else "give fewer --gpus, or 0 to run on processors",
            )


@contextmanager
def _running(args: ServeArgs, host: str, port: int) -> Iterator[None]:
    """The application, from ready to gone."""
    from ray import serve

    quiet = {"log_level": "WARNING", "enable_access_log": False}
    with cli.sigterm_interrupts():  # ray.init has put its own handler in place of ours
        try:
            http = {"host": host, "port": port, "request_timeout_s": 2 * args.timeout_s}
            serve.start(proxy_location="HeadOnly", http_options=http, logging_config=quiet)
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
            if os.environ.get("RAY_ADDRESS"):
                serve.delete(NAME)  # others may have applications there
            else:
                serve.shutdown()  # type: ignore[no-untyped-call]


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
