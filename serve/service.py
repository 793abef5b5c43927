"""The Ray Serve deployment: an engine, a thread that runs its model on batches of queries, and a few that decode."""

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import ray
from fastapi import FastAPI
from PIL import Image
from ray import serve

from raycd.api import BundleInfo, SearchRequest
from raycd.data import images
from raycd.query import Answer, Prepared, Query
from raycd.view import View
from serve import problems, routes, swap
from serve.admission import Admission
from serve.args import ServeArgs
from serve.batching import Batcher
from serve.deadline import Deadline
from serve.engine import Engine
from serve.health import CANARY_S
from serve.metrics import Metrics
from serve.pictures import Pictures
from serve.store import Store
from serve.writer import Writer

T = TypeVar("T")

_log = logging.getLogger("ray.serve")


@serve.deployment(name="search", max_constructor_retry_count=1)
@serve.ingress()
class SearchService:
    """Answers `routes` from one engine, which may be changed for another while it answers.

    Attributes:
        engine: The one that new requests use.
        refused: Why the bundle that was asked for last is not the engine's; None where it is.
        writer: What changes the gallery; None where it does not change.
    """

    def __init__(self, args: ServeArgs) -> None:
        self.args = args
        # One core is left to HTTP and decoding: OpenMP's threads wait by spinning, and where they outnumber the cores
        # a query takes a hundred times as long.
        self._threads = args.threads or max(1, (len(os.sched_getaffinity(0)) - 1) // args.replicas)
        self._model = ThreadPoolExecutor(1, "model")
        self.threads = ThreadPoolExecutor(self._threads + 1, "decode")
        self._store = Store.open(args, _own_name())
        self.engine = self._engine(swap.folder(args.bundle))
        self.refused: str | None = None
        self.pictures = Pictures(args, self._store)
        self.admission, self.writes, self.browsing = (Admission(args.max_queue) for _ in range(3))
        self.metrics = Metrics()
        self._answers = Batcher(self._work, most=args.max_batch_size, wait_s=args.batch_wait_s, thread=self._model)
        self.writer = None if self._store is None else Writer(self, self._store, self._model)

    def _engine(self, folder: Path) -> Engine:
        return Engine(folder, self.args, threads=self._threads, model=self._model, store=self._store)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Ray Serve asks for the HTTP interface here, once the model is loaded."""
        return routes.build_app(self)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Ray Serve hands over `user_config` here: change to its bundle, or refuse it and go on. Raises nothing."""
        try:
            wanted = swap.Wanted.model_validate(user_config)
            folder = await asyncio.to_thread(swap.folder, wanted.bundle)
            if await asyncio.to_thread(swap.digest, folder) != self.engine.bundle.manifest.digest:
                fresh = await asyncio.to_thread(self._engine, folder)
                swap.check(self.engine, fresh)
                old, self.engine = self.engine, fresh
                old.close()
            self.refused = None
            _log.warning("this replica serves bundle %s", self.engine.bundle.manifest.digest[:12])
        except Exception as error:  # raised, it would make Ray Serve replace this replica, which answers
            self.refused = swap.reason(error)
            _log.error("a bundle was refused, the old one goes on: %s", error)

    def bundle_info(self) -> BundleInfo:
        """What this replica serves, and what it refused to."""
        manifest = self.engine.bundle.manifest
        return BundleInfo(digest=manifest.digest[:12], created=manifest.created, refused=self.refused)

    async def check_health(self) -> None:
        """Ray Serve asks every replica now and then, and replaces one that fails."""
        await self.canary()

    async def canary(self) -> None:
        """Encode and search, before all queries that wait. Raises where this replica cannot."""
        engine = self.engine
        self.metrics.gallery(engine)
        async with asyncio.timeout(CANARY_S):
            await self._answers((engine, engine.canary), first=True)

    def deadline(self) -> Deadline:
        """`async with` it: the time that a request may take."""
        return Deadline(self.args.timeout_s)

    async def reached(self, version: int) -> View:
        """The gallery's state, once this replica has that version."""
        follower = self.engine.follower
        if version <= self.engine.view.version or follower is None:
            return self.engine.view
        return await follower.reached(version)

    async def prepare(self, engine: Engine, asked: SearchRequest, image: bytes | None) -> Prepared:
        """Decode and preprocess beside the model. Raises BrokenImage and ProblemError."""

        def work() -> Prepared:
            view = engine.view
            if asked.image_id is not None and view.position(asked.image_id) is None:
                raise problems.ProblemError(404, f"the gallery has no image {asked.image_id!r}")
            query = Query(
                None if image is None else self.decoded(image),
                asked.text,
                asked.top_k or self.args.top_k,
                image_id=asked.image_id,
                negative_text=asked.negative_text,
                image_weight=asked.image_weight,
                text_weight=asked.text_weight,
                offset=asked.offset,
                allowed=view.mask(asked.category, asked.attributes),
                exclude_reference=asked.exclude_reference,
                exact=asked.exact,
            )
            return engine.searcher.prepare(query, view)

        return await self.aside(work)

    def decoded(self, image: bytes) -> Image.Image:
        """Within the limits. Raises BrokenImage."""
        args = self.args
        return images.decode(image, max_pixels=args.max_pixels, min_side=args.min_side, formats=args.formats)

    async def answer(self, engine: Engine, query: Prepared) -> Answer:
        """Search, together with the queries that come while the model is at work."""
        return await self._answers((engine, query))

    def _work(self, batch: Sequence[tuple[Engine, Prepared]]) -> list[Answer]:
        answers: list[Answer] = []
        for engine, some in groupby(batch, key=lambda one: one[0]):  # two of them, while one takes the other's place
            answers += engine.searcher.answer([query for _, query in some])
        if answers:
            self.metrics.batch(answers[0], self.admission.busy - len(batch))
        return answers

    async def aside(self, work: Callable[[], T]) -> T:
        """Do what takes milliseconds without holding up the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, work)

    def replicas(self) -> tuple[int, int]:
        """Replicas of this deployment that answer, and all that it should have."""
        me = serve.get_replica_context()
        states = serve.status().applications[me.app_name].deployments[me.deployment].replica_states
        return states.get("RUNNING", 0), self.args.replicas


def _own_name() -> str:
    """What the replicas of this service have in common, and no other service has."""
    return f"application {serve.get_replica_context().app_name} of Ray {ray.get_runtime_context().gcs_address}"
