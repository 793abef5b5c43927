"""The application on Ray Serve: how it is deployed, started, given another bundle, and ended."""

from __future__ import annotations

import hashlib
import logging
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from raycd.config import cli
from raycd.errors import RunError
from serve.args import ServeArgs, Wanted
from serve.start import local

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle

    from raycd.api import BundleInfo

NAME = "raycd"  # of the Serve application
_OURS = re.compile(r"raycd\.errors\.\w+: (.+(?:\n  .+)*)")  # as a traceback ends with it

# Tries, where nobody would deploy again once what it needs is back. Ray Serve's own bound holds,
# too: 3 for each replica, or RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT in its controller's environment.
NO_END = 2**31 - 1
PROXY_S = 0.3  # seconds that an answer takes from a replica through the proxy
END_S = 5.0  # seconds that a replica may take to end beside a request of `timeout_s`


def application(args: ServeArgs, wanted: Wanted | None = None, *, tries: int = 1) -> Application:
    """Return the Ray Serve application, with the bundle that is `wanted`; None: that of `args`.

    Deployed again with the same `args`, its replicas stay and only change their bundle.

    Args:
        args: The settings.
        wanted: The bundles of its galleries.
        tries: Starts of replicas that may fail before Ray Serve gives up. One is right where
            somebody waits for the message or starts it again.
    """
    from serve.monitoring import logs
    from serve.service import search
    from serve.start import private

    # Each gallery has queues of its own: one that is full leaves room for the others.
    most = 4 * args.max_queue * (1 + len(args.galleries)) + 64
    deployment = private.with_version(
        search,
        hashlib.sha256(args.model_dump_json().encode()).hexdigest()[:16],
        max_constructor_retry_count=tries,
        **args.replicas.options(),
        # A replica that ends finishes what is under way, whatever that may take.
        graceful_shutdown_timeout_s=args.timeout_s + END_S,
        ray_actor_options={"num_cpus": args.cpus, "num_gpus": args.gpus},
        logging_config=logs.config(args),
        # Beyond max_queue a gallery itself refuses, with a problem document.
        max_ongoing_requests=most,
        max_queued_requests=most,
        # Always, for replicas load their bundle by it.
        user_config=(wanted or Wanted(bundle=args.bundle)).model_dump(),
    )
    return deployment.bind(args)


@contextmanager
def running(args: ServeArgs, host: str, port: int) -> Iterator[None]:
    """Run the application in the block. Raises RunError where it does not start."""
    from ray import serve as ray_serve

    from serve.monitoring import logs

    # Each `run` would warn that it connects to what `start` has started, and that options
    # are not applied.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with cli.sigterm_interrupts():  # ray.init has put its own handler in place of ours
        try:
            http = {"host": host, "port": port, "request_timeout_s": 2 * args.timeout_s}
            ray_serve.start(
                proxy_location="HeadOnly",
                http_options=http,
                logging_config=logs.config(args),
            )
            ray_serve.run(application(args), name=NAME, route_prefix="/", blocking=False)
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
                ray_serve.shutdown()  # type: ignore[no-untyped-call]  # Ray has no types here
            else:
                ray_serve.delete(NAME)  # others may have applications there


def change(args: ServeArgs, wanted: Wanted, back: Wanted) -> dict[str, BundleInfo]:
    """Have every replica change the bundles of its galleries.

    Where one refuses that of a gallery, all of them go `back` in that gallery, and so do later
    ones. Returns by gallery what that one says, else what all of them say.
    """
    from ray import serve as ray_serve

    ray_serve.run(application(args, wanted), name=NAME, route_prefix="/", blocking=False)
    said = bundle_infos()
    if refused := refusing(said):
        settled = wanted.but(refused, back, args)
        ray_serve.run(application(args, settled), name=NAME, route_prefix="/", blocking=False)
    return said


def bundle_infos() -> dict[str, BundleInfo]:
    """Return by gallery what all replicas say of its bundle, or one that has refused it."""
    from ray import serve as ray_serve

    infos: list[dict[str, BundleInfo]] = _all_replicas(
        ray_serve.get_app_handle(NAME), "bundle_infos"
    )
    return {
        gallery: next((one[gallery] for one in infos if one[gallery].refused), info)
        for gallery, info in infos[0].items()
    }


def refusing(said: Mapping[str, BundleInfo]) -> list[str]:
    """Return the galleries whose bundle was refused."""
    return [gallery for gallery, info in said.items() if info.refused]


def _all_replicas(
    handle: DeploymentHandle[Any], method: str, timeout_s: float | None = None
) -> list[Any]:
    """Return what a method of each replica returns."""
    results: list[Any] = handle.broadcast(method).results(timeout_s=timeout_s)
    return results


def _finish(args: ServeArgs) -> None:
    """Let the replicas answer what is under way, and refuse what comes from now on."""
    from ray import serve as ray_serve

    try:
        if any(_all_replicas(ray_serve.get_app_handle(NAME), "close", args.timeout_s + 1)):
            time.sleep(PROXY_S)
    except Exception as error:  # of Ray, which may be what ends us: there is nothing left to finish
        print(
            f"warning: requests under way were not finished: {type(error).__name__}",
            file=sys.stderr,
        )


def _cause(error: RuntimeError) -> str:
    """Return why a replica did not start: our message in what Ray Serve says, or its last line."""
    from ray import serve as ray_serve

    texts = [str(error)]
    if (application := ray_serve.status().applications.get(NAME)) is not None:
        texts += [
            application.message,
            *(deployment.message for deployment in application.deployments.values()),
        ]
    ours = [match[1] for text in texts if (match := _OURS.search(text))]
    lines = [line.strip() for line in (ours or texts)[-1].splitlines() if line.strip()]
    return "\n            ".join(lines if ours else lines[-1:]) or type(error).__name__
