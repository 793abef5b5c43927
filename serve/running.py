"""The application on Ray Serve: how it is deployed, started, given another bundle, and ended."""

from __future__ import annotations

import hashlib
import logging
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from raycd.config import cli
from raycd.errors import RunError
from serve import local
from serve.args import ServeArgs

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle

    from raycd.api import BundleInfo
    from serve.swap import Wanted

NAME = "raycd"  # of the Serve application
_OURS = re.compile(r"raycd\.errors\.\w+: (.+(?:\n  .+)*)")  # as a traceback ends with it

ON_THE_WAY_S = 0.3  # that an answer takes from a replica through the proxy
QUIET = {"log_level": "WARNING", "enable_access_log": False}


def application(args: ServeArgs, wanted: Wanted | None = None) -> Application:
    """The Ray Serve application. `wanted` is the bundle that it serves; None: that of `args`.

    Deployed again with the same `args`, its replicas stay and are only told what is wanted: that is
    what the version is for. (Of itself, Ray Serve gives each imperative deployment another one, and
    replaces all replicas.)
    """
    from serve.service import SearchService
    from serve.swap import Wanted

    deployed: Application = SearchService.options(  # type: ignore[attr-defined]
        num_replicas=args.replicas,
        ray_actor_options={"num_cpus": args.cpus, "num_gpus": args.gpus},
        logging_config=QUIET,  # a line a request takes as long as parsing it
        max_ongoing_requests=4 * args.max_queue
        + 64,  # beyond max_queue a replica itself refuses, with a problem
        max_queued_requests=4 * args.max_queue + 64,
        user_config=(
            wanted or Wanted(bundle=args.bundle)
        ).model_dump(),  # always: replicas load their bundle by it
        version=hashlib.sha256(args.model_dump_json().encode()).hexdigest()[:16],
        _internal=True,
    ).bind(args)
    return deployed


@contextmanager
def running(args: ServeArgs, host: str, port: int) -> Iterator[None]:
    """The application, from ready to gone. Raises RunError where it does not start."""
    from ray import serve

    # Each serve.run says that it connects to what serve.start has started, and that options will
    # not be applied.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with cli.sigterm_interrupts():  # ray.init has put its own handler in place of ours
        try:
            http = {"host": host, "port": port, "request_timeout_s": 2 * args.timeout_s}
            serve.start(proxy_location="HeadOnly", http_options=http, logging_config=QUIET)
            serve.run(application(args), name=NAME, route_prefix="/", blocking=False)
            try:
                yield
            except KeyboardInterrupt:
                _finish(args)
                raise
        except RuntimeError as error:
            raise RunError(
                "the service did not start", got=_cause(error), do="see it whole with --debug"
            ) from error
        finally:
            if local.is_ours():
                serve.shutdown()  # type: ignore[no-untyped-call]
            else:
                serve.delete(NAME)  # others may have applications there


def change(args: ServeArgs, wanted: Wanted, back: Wanted) -> BundleInfo:
    """Have every replica change to another bundle; where one refuses it, all of them go `back`, and
    so do later ones.

    Returns what such a one said of it, else what all of them say.
    """
    from ray import serve

    handle = serve.run(application(args, wanted), name=NAME, route_prefix="/", blocking=False)
    told: list[BundleInfo] = _all_replicas(handle, "bundle_info")
    if refusals := [info for info in told if info.refused]:
        serve.run(application(args, back), name=NAME, route_prefix="/", blocking=False)
        return refusals[0]
    return told[0]


def _all_replicas(
    handle: DeploymentHandle, method: str, timeout_s: float | None = None
) -> list[Any]:
    """What a method of all replicas returns."""
    if not handle.is_initialized:  # Ray Serve gives the same one each time
        handle._init(
            _run_router_in_separate_loop=True
        )  # there is no event loop here, whatever replicas are told to do
    told: list[Any] = handle.broadcast(method).results(timeout_s=timeout_s)
    return told


def _finish(args: ServeArgs) -> None:
    """Let the replicas answer what is under way; what comes from now on is refused."""
    from ray import serve

    try:
        if any(_all_replicas(serve.get_app_handle(NAME), "close", args.timeout_s + 1)):
            time.sleep(ON_THE_WAY_S)
    except Exception as error:  # of Ray, which may be what ends us: there is nothing left to finish
        print(
            f"warning: requests under way were not finished: {type(error).__name__}",
            file=sys.stderr,
        )


def _cause(error: RuntimeError) -> str:
    """Why a replica did not start: the message of ours in what Ray Serve says of it, or the last
    line of that.
    """
    from ray import serve

    told = [str(error)]
    if (application := serve.status().applications.get(NAME)) is not None:
        told += [
            application.message,
            *(deployment.message for deployment in application.deployments.values()),
        ]
    ours = [match[1] for text in told if (match := _OURS.search(text))]
    lines = [line.strip() for line in (ours or told)[-1].splitlines() if line.strip()]
    return "\n            ".join(lines if ours else lines[-1:]) or type(error).__name__
