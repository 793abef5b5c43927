"""The Ray under the service: one of its own on this machine, or the one that RAY_ADDRESS names."""

import math
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raycd.errors import RunError
from raycd.runtime import local_ray, watch
from serve.args import ServeArgs

_CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"


def is_ours() -> bool:
    """Return whether the Ray will be one of our own, gone with us.

    Raises RunError where RAY_ADDRESS is not an address.
    """
    return not local_ray.address()


@contextmanager
def cluster(
    args: ServeArgs, *, haproxy: bool = False, metrics_port: int | None = None
) -> Iterator[str]:
    """Have Ray in the block. Yields the URL of its metrics.

    Args:
        args: The settings.
        haproxy: HAProxy stands before the replicas. For a Ray of our own.
        metrics_port: Port of the metrics; None is a free one. For a Ray of our own.

    Raises:
        RunError: The Ray of RAY_ADDRESS cannot be reached, or this machine has too little for the
            replicas.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # tell nobody
    # One event loop a replica: fewer hops between threads.
    os.environ.setdefault("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")
    # OpenMP's threads spin for 50 us when they wait, not for milliseconds that HTTP needs.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # A proxy that has died is replaced after three failed checks: 30 s at Ray Serve's own pace.
    os.environ.setdefault("RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S", "2")
    # Only this user gets into it; below /tmp, for HAProxy makes a socket in it, whose path must be
    # short.
    with tempfile.TemporaryDirectory(
        prefix="raycd-serve-", dir="/tmp", ignore_cleanup_errors=True
    ) as scratch:
        watch.leftovers.append(Path(scratch))
        if is_ours():
            os.environ.update(_haproxy(Path(scratch)) if haproxy else _default_proxy(args))
        with local_ray.connected(metrics_port=metrics_port):
            # What calls replicas from here has no event loop, which RAY_SERVE_THROUGHPUT_OPTIMIZED
            # would have it share. Ray Serve reads this once it is imported, later; Ray's own
            # processes have started without it.
            os.environ.setdefault("RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP", "1")
            import ray

            if is_ours():  # a cluster may grow, a machine does not
                resources = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray's
                check_room(args, resources)
            node = ray.nodes()[0]  # type: ignore[no-untyped-call]  # Ray's
            yield f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"


def _default_proxy(args: ServeArgs) -> dict[str, str]:
    """Return what gives Ray Serve's proxy our parser and guard; the environment may name others."""
    from serve.security import front

    return {
        # Otherwise replicas listen on ports of their own, too, and stay for 30 s after Ctrl-C for
        # balancers that use them.
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
        _CALLBACK: os.environ.get(_CALLBACK, f"{front.__name__}:{front.middlewares.__name__}"),
        front.HOSTS: " ".join(args.hosts),
    }


def _haproxy(scratch: Path) -> dict[str, str]:
    """Return what makes Ray Serve start HAProxy, with files and ports of its own.

    Those that the environment names stay.
    """
    wanted = {
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(scratch / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(scratch / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(scratch),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(scratch / "server-state"),
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        # HAProxy knows at once that a replica goes
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
    }
    return {"RAY_SERVE_ENABLE_HA_PROXY": "1"} | {
        name: os.environ.get(name, value) for name, value in wanted.items()
    }


def free_port() -> int:
    """Return a port of loopback that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def addresses(host: str, port: int | None = None) -> list[tuple[Any, ...]]:
    """Return what `socket.getaddrinfo` knows of a host. Raises RunError where that is nothing."""
    try:
        return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    except (OSError, ValueError) as error:  # ValueError: such as a..b, which is no name at all
        raise RunError(
            f"there is no address of the host {host}",
            got=getattr(error, "strerror", None) or error,
            expected="an address of the machine that serves, or a name that leads to one",
            do="give another --host",
        ) from error


def check_free(host: str, port: int) -> None:
    """Raise RunError where nothing can listen on host:port."""
    family, kind, *_, address = addresses(host, port)[0]
    try:
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


def check_room(args: ServeArgs, resources: dict[str, float]) -> None:
    """Raise RunError where Ray would wait for ever for what the machine does not have."""
    for name, each in (("CPU", args.cpus), ("GPU", args.gpus)):
        wanted, there = args.replicas.max * each, resources.get(name, 0.0)
        if name == "GPU" and 0 < each < 1:  # a share is of one GPU, and not of two
            wanted = math.ceil(args.replicas.max / int(1 / each))
        if wanted > there:
            raise RunError(
                f"this machine has too few {name}s for the replicas",
                got=f"{there:g} {name}s",
                expected=f"{wanted:g}: {args.replicas.max} replicas of {each:g}",
                do="give fewer --replicas"
                if name == "CPU"
                else "give fewer --gpus, or 0 to run on CPUs",
            )
