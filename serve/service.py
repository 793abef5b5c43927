"""The Ray Serve deployment: an engine, a thread that runs its model on batches of queries, and a
few that decode.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import ray
from fastapi import FastAPI
from PIL import Image
from ray import serve

from raycd.api import BundleInfo, SearchRequest
from raycd.data import images
from raycd.search.query import Answer, Prepared, Query
from serve import failure, problems, routes, swap
from serve.admission import Admission, Door, Reading
from serve.args import ServeArgs
from serve.batching import Batcher
from serve.deadline import Deadline, check, in_thread
from serve.engine import Engine
from serve.health import CANARY_S
from serve.metrics import Metrics
from serve.pictures import Pictures
from serve.store import Store
from serve.writer import Writer

T = TypeVar("T")

LARGE = 4_000_000  # pixels of an image that takes long to decode

_log = logging.getLogger("ray.serve")


@serve.deployment(name="search", max_constructor_retry_count=1)
@serve.ingress()
class SearchService:
    """Answers `routes` from one engine, which may be changed for another while it answers.

    Attributes:
        refused: Why the bundle that was asked for last is not the engine's; None where it is.
        writer: What changes the gallery; None where it does not change.
    """

    def __init__(self, args: ServeArgs) -> None:
        self.args = args
        # One core is left to HTTP and decoding: OpenMP's threads wait by spinning, and where they
        # outnumber the cores a query takes a hundred times as long.
        self._threads = args.threads or max(1, (len(os.sched_getaffinity(0)) - 1) // args.replicas)
        self._model = ThreadPoolExecutor(1, "model")
        self.threads = ThreadPoolExecutor(self._threads + 1, "decode")
        self._large = ThreadPoolExecutor(
            self._threads, "large"
        )  # 50 KB may take a second: they delay no others
        self._store = Store.open(args, _own_name())
        self._engine: Engine | None = None  # `reconfigure` comes before any request
        self.refused: str | None = None
        self.pictures = Pictures(args, self._store)
        self.admission, self.writes, self.imports = (Admission(args.max_queue) for _ in range(3))
        self.browsing, self._waiting = (Admission(args.max_queue) for _ in range(2))
        self.reading = Reading(2 * args.max_queue, args.body_timeout_s)
        self.door = Door()
        self.metrics = Metrics()
        self._answers = Batcher(
            self._work, most=args.max_batch_size, wait_s=args.batch_wait_s, thread=self._model
        )
        self.writer = None if self._store is None else Writer(self, self._store, self._model)

    @property
    def engine(self) -> Engine:
        """The one that new requests use."""
        assert self._engine is not None, "Ray Serve calls reconfigure first"
        return self._engine

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Ray Serve asks for the HTTP interface here, before it calls `reconfigure`."""
        return routes.build_app(self)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Ray Serve hands over `user_config` here: load its bundle, or change to it, or refuse it
        and go on.

        Raises RaycdError only in a replica that has no bundle yet: one that starts when what is
        wanted is refused loads that of its arguments, and where that is refused, too, there is
        nothing to go on with.
        """
        try:
            await self._change(swap.Wanted.model_validate(user_config).bundle)
            self.refused = None
        except Exception as error:
            if (
                self._engine is None
                and user_config == swap.Wanted(bundle=self.args.bundle).model_dump()
            ):
                raise
            self.refused = swap.reason(error)
            _log.error("a bundle was refused, the old one goes on: %s", failure.told(error))
        if self._engine is None:
            await self._change(self.args.bundle)

    async def _change(self, bundle: str) -> None:
        """Load a bundle beside the one at work, try it, and let it take the place. Raises
        RaycdError.
        """
        folder = await asyncio.to_thread(swap.folder, bundle)
        if (
            self._engine
            and await asyncio.to_thread(swap.digest, folder) == self._engine.bundle.manifest.digest
        ):
            return
        fresh = await asyncio.to_thread(self._load, folder)
        try:
            await self._try(fresh)
            if self._engine:
                swap.check(self._engine, fresh)
        except BaseException:
            fresh.close()
            raise
        old, self._engine = self._engine, fresh
        if old:
            old.close()
        _log.warning("this replica serves bundle %s", fresh.bundle.manifest.digest[:12])

    def _load(self, folder: Path) -> Engine:
        return Engine(
            folder, self.args, threads=self._threads, model=self._model, store=self._store
        )

    def bundle_info(self) -> BundleInfo:
        """What this replica serves, and what it refused to."""
        manifest = self.engine.bundle.manifest
        return BundleInfo(
            digest=manifest.digest[:12], created=manifest.created, refused=self.refused
        )

    async def check_health(self) -> None:
        """Ray Serve asks every replica now and then, and replaces one that fails."""
        await self.canary()

    async def canary(self) -> None:
        """Encode and search, before all queries that wait. Raises where this replica cannot."""
        self.metrics.gallery(self.engine)
        await self._try(self.engine)

    async def check_gallery(self) -> None:
        """Raises GalleryError where the gallery's SQLite file has gone or is another one.

        No part of `check_health`: Ray Serve would replace this replica, which still has all that
        can be found.
        """
        if self._store is not None:
            async with asyncio.timeout(CANARY_S):
                await asyncio.to_thread(self._store.gallery_db.check_file)

    async def _try(self, engine: Engine) -> None:
        async with asyncio.timeout(CANARY_S):
            engine.check(await self._answers((engine, engine.canary), first=True))

    def deadline(self, *, then: str = "") -> Deadline:
        """`async with` it: the time that a request may take. `then` tells the client what it means
        to be too late.
        """
        return Deadline(self.args.timeout_s, then=then)

    async def reached(self, version: int) -> Engine:
        """The engine, once its view of the gallery has that version.

        Raises ProblemError where the database does not have it (422), or too many wait (503).
        """
        engine = self.engine
        if engine.follower is None or version <= engine.view.version:
            return engine
        with self._waiting.slot():
            while engine.follower and version > engine.view.version:
                if not await engine.follower.reached(version):
                    newest = engine.view.version
                    told = f"the gallery has no version {version} yet, the newest is {newest}: give what a write told"
                    raise problems.invalid([{"loc": ("min_version",), "msg": told}])
                engine = self.engine  # another one may have taken its place
        return engine

    async def prepare(self, engine: Engine, asked: SearchRequest, image: bytes | None) -> Prepared:
        """Decode and preprocess beside the model. Raises BrokenImage and ProblemError."""

        def work() -> Prepared:
            view = engine.view
            if asked.image_id is not None and view.position(asked.image_id) is None:
                raise problems.ProblemError(404, f"the gallery has no image {asked.image_id!r}")
            picture = None if image is None else self.decoded(image)
            check()
            query = Query(
                picture,
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
            check()
            return engine.searcher.prepare(query, view)

        return await self.aside(work, image)

    def decoded(self, image: bytes) -> Image.Image:
        """Within the limits. Raises BrokenImage."""
        args = self.args
        return images.decode(
            image, max_pixels=args.max_pixels, min_side=args.min_side, formats=args.formats
        )

    async def answer(self, engine: Engine, query: Prepared) -> Answer:
        """Search, together with the queries that come while the model is at work."""
        return await self._answers((engine, query))

    def _work(self, batch: Sequence[tuple[Engine, Prepared]]) -> list[Answer]:
        answers: list[Answer] = []
        for engine, some in groupby(
            batch, key=lambda one: one[0]
        ):  # two of them, while one takes the other's place
            answers += engine.searcher.answer([query for _, query in some])
        if answers:
            self.metrics.batch(
                answers[0], max(0, self.admission.busy - len(batch))
            )  # the canary is no search
        return answers

    async def aside(self, work: Callable[[], T], image: bytes | None = None) -> T:
        """Do what takes milliseconds without holding up the event loop, as long as it is waited
        for.

        `image` is what it decodes: where that takes longer, no work but its like waits for it.
        """
        large = image is not None and await in_thread(self.threads, lambda: _is_large(image))
        return await in_thread(self._large if large else self.threads, work)

    async def close(self) -> bool:
        """Take on no more requests, and finish those under way in the time of one. Returns whether
        there were any.
        """
        return await self.door.close(self.args.timeout_s)

    def replicas(self) -> tuple[int, int]:
        """Replicas of this deployment that answer, and all that it should have."""
        me = serve.get_replica_context()
        states = serve.status().applications[me.app_name].deployments[me.deployment].replica_states
        return states.get("RUNNING", 0), self.args.replicas


def _is_large(data: bytes) -> bool:
    """Whether the image's header names more than LARGE pixels."""
    try:
        with Image.open(BytesIO(data), formats=images.FORMATS) as image:
            return image.width * image.height > LARGE
    except Exception:  # of Pillow's many kinds: decoding says what is wrong
        return False


def _own_name() -> str:
    """What the replicas of this service have in common, and no other service has."""
    return f"application {serve.get_replica_context().app_name} of Ray {ray.get_runtime_context().gcs_address}"
