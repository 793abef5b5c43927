"""The Ray Serve deployment: the galleries of a replica behind their HTTP interface."""

import asyncio
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve as ray_serve

from raycd.api import BundleInfo
from serve.args import ServeArgs


class SearchService:
    """A replica as Ray Serve deploys it.

    What it is made of needs torch, for seconds: it is imported in the replica, not by those who
    deploy it.
    """

    def __init__(self, args: ServeArgs) -> None:
        from serve.api.middleware import InFlight
        from serve.galleries import Galleries
        from serve.monitoring import logs
        from serve.monitoring.metrics import Metrics
        from serve.shadow_process import beside

        logs.name_traces(args)
        self._metrics, self._in_flight, name = Metrics(), InFlight(), _service_name()
        shadow = beside(args, name, self._metrics)
        self._galleries = Galleries(args, name=name, observer=self._metrics.of, shadow=shadow)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the HTTP interface: Ray Serve asks for it before it calls `reconfigure`.

        The documented hook of `serve.ingress()`. A builder function, its other way, gets no
        replica to build on.
        """
        from serve.api.routes import build_app

        return build_app(self._galleries, self._metrics, self._in_flight, self._count_replicas)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Change to the bundles of `user_config`: Ray Serve calls this before any request."""
        await self._galleries.change_bundles(user_config)

    async def check_health(self) -> None:
        """Raise where this replica cannot search: Ray Serve replaces it then.

        The gallery's file is no part of it: a new replica would lose what this one can still find.
        """
        await self._galleries.check_canaries()

    def bundle_infos(self) -> dict[str, BundleInfo]:
        """Return by gallery which bundle this replica serves, and why it refused another."""
        return self._galleries.bundle_infos()

    async def close(self) -> bool:
        """Refuse new requests and finish those under way. Returns whether there were any."""
        some = await self._in_flight.drain(self._galleries.args.timeout_s)
        await asyncio.to_thread(self._galleries.close)
        return some

    def __del__(self) -> None:
        """Write the feedback that waits: Ray Serve calls this before it ends a replica."""
        self._galleries.close()

    def _count_replicas(self) -> tuple[int, int]:
        """Return how many replicas of this deployment answer, and how many have to.

        Where their number follows the load, those that are starting or ending are none of either.
        """
        me = ray_serve.get_replica_context()
        application = ray_serve.status().applications[me.app_name]
        states = application.deployments[me.deployment].replica_states
        running = sum(count for state, count in states.items() if state == "RUNNING")
        return running, self._galleries.args.replicas.min


# `ingress` without an application: it is asked for once there is a replica to build it on.
search: ray_serve.Deployment = ray_serve.deployment(name="search")(
    ray_serve.ingress()(SearchService)
)


def _service_name() -> str:
    app, address = ray_serve.get_replica_context().app_name, ray.get_runtime_context().gcs_address
    return f"application {app} of Ray {address}"
