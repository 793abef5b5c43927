"""The Ray Serve deployment: a bundle, a thread that runs its model on batches of queries, and a few that decode."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from fastapi import FastAPI
from PIL import Image
from ray import serve

from raycd.data import images
from raycd.model import bundle
from raycd.model.bundle import Bundle
from raycd.search import Prepared, Query, Result, Searcher
from serve import routes
from serve.schemas import IndexInfo, ModelInfo, ServeArgs

T = TypeVar("T")


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
        self.info = describe(loaded)
        self.default_top_k, self.max_top_k = loaded.config.serve.top_k, loaded.config.serve.max_top_k
        self.limits = {"max_pixels": loaded.config.data.max_pixels, "min_side": loaded.config.data.min_side}
        self.searcher = Searcher(loaded, threads=threads, device="cuda" if args.gpus else "cpu")
        self._model_thread = ThreadPoolExecutor(1, "model")
        self._decode_threads = ThreadPoolExecutor(threads + 1, "decode")
        self._gather.set_max_batch_size(args.max_batch_size)  # type: ignore[attr-defined]
        self._gather.set_batch_wait_timeout_s(args.batch_wait_s)  # type: ignore[attr-defined]
        canary = Query(Image.new("RGB", (64, 64), "grey"), "is blue", top_k=1)
        self._model_thread.submit(self.searcher.search, [canary]).result()  # what cannot answer must not start

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Ray Serve asks for the HTTP interface here, once the model is loaded."""
        return routes.build_app(self)

    async def prepare(self, image: bytes, text: str, top_k: int) -> Prepared:
        """Decode and preprocess beside the model. Raises BrokenImage and DataError."""

        def work() -> Prepared:
            return self.searcher.prepare(Query(images.decode(image, **self.limits), text, top_k))

        return await _in(self._decode_threads, work)

    async def answer(self, query: Prepared) -> list[Result]:
        """Search, together with the queries that come within a moment."""
        results: list[Result] = await self._gather(query)
        return results

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.01)  # both are set anew from the arguments
    async def _gather(self, batch: list[Prepared]) -> list[list[Result]]:
        return await _in(self._model_thread, lambda: self.searcher.answer(batch))


async def _in(threads: Executor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(threads, work)


def describe(loaded: Bundle) -> ModelInfo:
    """What every answer says about the model."""
    manifest = loaded.manifest
    return ModelInfo(
        preset=manifest.preset,
        encoder=manifest.encoder.name,
        fingerprint=manifest.encoder.fingerprint[:12],
        head=loaded.head_config.name,
        index=IndexInfo(kind=manifest.index.kind, size=manifest.index.size),
        protocol=loaded.config.evaluate.protocol,
        metrics=manifest.metrics,
    )
