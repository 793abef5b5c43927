"""The Ray Serve deployment: a bundle, a thread that runs its model on batches of queries, and a few that decode."""

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from fastapi import FastAPI
from PIL import Image
from ray import serve

from raycd.api import IndexInfo, ModelInfo, SearchRequest
from raycd.data import images
from raycd.model import bundle
from raycd.model.bundle import Bundle
from raycd.model.fold import fold_batch_norms
from raycd.query import Answer, Prepared, Query
from raycd.search import Searcher
from serve import problems, routes
from serve.admission import Admission
from serve.args import ServeArgs
from serve.batching import Batcher
from serve.health import CANARY_S
from serve.metrics import Metrics
from serve.pictures import Pictures

T = TypeVar("T")

VERSION = 1  # of a gallery that does not change


@serve.deployment(name="search", max_constructor_retry_count=1)
@serve.ingress()
class SearchService:
    """Answers `routes` from one bundle. The model runs in one thread only, on what has gathered in the meantime."""

    def __init__(self, args: ServeArgs) -> None:
        self.args = args
        # One core is left to HTTP and decoding: OpenMP's threads wait by spinning, and where they outnumber the cores
        # a query takes a hundred times as long.
        threads = args.threads or max(1, (len(os.sched_getaffinity(0)) - 1) // args.replicas)
        loaded = bundle.load(Path(args.bundle), threads=threads)
        fold_batch_norms(loaded.encoder.clip)
        device = "cuda" if args.gpus else "cpu"
        self.searcher = Searcher(loaded, threads=threads, device=device, text_cache=args.text_cache)
        self.model, self.index = describe(loaded), index_info(loaded)
        self.example_texts: list[str] = loaded.manifest.example_texts
        self.pictures = Pictures(self.searcher.gallery, args)
        self.admission = Admission(args.max_queue)
        self.metrics = Metrics()
        self.metrics.gallery(len(self.searcher.gallery))
        self._answers = Batcher(self._work, most=args.max_batch_size, wait_s=args.batch_wait_s)
        self._threads = ThreadPoolExecutor(threads + 1, "decode")
        canary = Query(Image.new("RGB", (64, 64), "grey"), "is blue", top_k=1)
        self._canary = self.searcher.prepare(canary)  # before any text is known, so that both encoders run each time
        self.searcher.answer([self._canary])  # what cannot answer must not start

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Ray Serve asks for the HTTP interface here, once the model is loaded."""
        return routes.build_app(self)

    async def check_health(self) -> None:
        """Ray Serve asks every replica now and then, and replaces one that fails."""
        await self.canary()

    async def canary(self) -> None:
        """Encode and search, before all queries that wait. Raises where this replica cannot."""
        async with asyncio.timeout(CANARY_S):
            await self._answers(self._canary, first=True)

    async def prepare(self, asked: SearchRequest, image: bytes | None) -> Prepared:
        """Decode and preprocess beside the model. Raises BrokenImage and ProblemError."""

        def work() -> Prepared:
            if asked.image_id is not None and self.searcher.gallery.position(asked.image_id) is None:
                raise problems.ProblemError(404, f"the gallery has no image {asked.image_id!r}")
            query = Query(
                None if image is None else self._decoded(image),
                asked.text,
                asked.top_k or self.args.top_k,
                image_id=asked.image_id,
                negative_text=asked.negative_text,
                image_weight=asked.image_weight,
                text_weight=asked.text_weight,
                offset=asked.offset,
                allowed=self.searcher.gallery.mask(asked.category, asked.attributes),
                exclude_reference=asked.exclude_reference,
                exact=asked.exact,
            )
            return self.searcher.prepare(query)

        return await self.aside(work)

    def _decoded(self, image: bytes) -> Image.Image:
        args = self.args
        return images.decode(image, max_pixels=args.max_pixels, min_side=args.min_side, formats=args.formats)

    async def answer(self, query: Prepared) -> Answer:
        """Search, together with the queries that come while the model is at work."""
        return await self._answers(query)

    def _work(self, batch: Sequence[Prepared]) -> list[Answer]:
        answers = self.searcher.answer(batch)
        if answers:
            self.metrics.batch(answers[0], self.admission.busy - len(batch))
        return answers

    async def aside(self, work: Callable[[], T]) -> T:
        """Do what takes milliseconds without holding up the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def replicas(self) -> tuple[int, int]:
        """Replicas of this deployment that answer, and all that it should have."""
        me = serve.get_replica_context()
        states = serve.status().applications[me.app_name].deployments[me.deployment].replica_states
        return states.get("RUNNING", 0), self.args.replicas


def describe(loaded: Bundle) -> ModelInfo:
    """What every answer says about the model."""
    manifest = loaded.manifest
    return ModelInfo(
        preset=manifest.preset,
        encoder=manifest.encoder.name,
        fingerprint=manifest.encoder.fingerprint[:12],
        head=loaded.head_config.name,
        protocol=loaded.config.evaluate.protocol,
        metrics=manifest.metrics,
    )


def index_info(loaded: Bundle) -> IndexInfo:
    """What every answer says about the index."""
    index = loaded.index
    return IndexInfo(kind=index.kind, size=index.size, version=VERSION, recall=index.recall)
