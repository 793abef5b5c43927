"""A replica: an engine, the thread of its model, threads that decode, and what limits them.

A process has one for each gallery (serve/galleries.py). It knows neither Ray nor HTTP:
serve/service.py deploys it, serve/api/ asks it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol, TypeVar

from PIL import Image

from raycd.api import BundleInfo, QueryRequest, SecondInfo
from raycd.bundle import SharedEncoders
from raycd.data import images
from raycd.gallery.state import State
from raycd.model.threads import usable_cpus
from raycd.search.query import Answer, Encoded, NothingLeft, Prepared
from serve.args import DEFAULT, ServeArgs, Wanted
from serve.engine import queries, swap
from serve.engine.engine import Engine
from serve.engine.queries import QueryImage
from serve.errors import NoSuchVersion, format_error
from serve.live.engine_follower import EngineFollower
from serve.live.pictures import GalleryPictures
from serve.live.recorder import Recorder, RecorderObserver
from serve.live.store import GalleryStore
from serve.live.writer import Writer
from serve.load.admission import Admission, deadline, run_in_thread
from serve.load.batching import Batcher, each
from serve.second.model import SecondModel
from serve.second.shadow import Shadow

T = TypeVar("T")

CANARY_S = 10.0  # seconds within which a replica answers its own query
LARGE = 4_000_000  # pixels of an image that takes long to decode

_log = logging.getLogger("ray.serve")


class Observer(RecorderObserver, Protocol):
    """What records a replica's work."""

    def batch(self, answer: Answer, busy: int) -> None:
        """Record a batch by one of its answers, and the searches at work and waiting with it."""

    def state(self, replica: Replica) -> None:
        """Record what a replica serves, and the state of its gallery and caches."""


class Replica:
    """A copy of the service: one engine, which may be replaced while it answers.

    Everything of it but `bundle_info` is used from one event loop. There is no engine until
    `change_bundle` has loaded one.

    Args:
        args: The settings.
        name: What the replicas of this service have in common, and no other service has.
        observer: What records its work.
        shadow: What has a second model answer, unseen.
        gallery: The name of its gallery in this service.
        encoders: Those of this process, which its engines may share with other replicas.

    Attributes:
        refused: Why the bundle that was asked for last is not the engine's; None where it is.
        refused_because: The same with paths, for the log.
        writer: What changes the gallery; None where it does not change.
        recorder: What keeps searches and events; None where they are not kept.
        second: The second model, for users; None where there is none.
        searches, writes, imports, events, browsing: How many of each are at work, each by itself.

    Raises:
        GalleryError: The gallery's database cannot be opened.
    """

    def __init__(
        self,
        args: ServeArgs,
        *,
        name: str,
        observer: Observer,
        shadow: Shadow | None = None,
        gallery: str = DEFAULT,
        encoders: SharedEncoders | None = None,
    ) -> None:
        self.args, self._observer, self.shadow = args, observer, shadow
        self.gallery, self._encoders = gallery, encoders
        # One core is left to HTTP and decoding: OpenMP's threads wait by spinning, and where they
        # outnumber the cores a query takes a hundred times as long.
        models = args.replicas.max * (1 + len(args.galleries))
        self._threads = args.threads or max(1, (usable_cpus() - 1) // models)
        self._model = ThreadPoolExecutor(1, "model")
        self._small = ThreadPoolExecutor(self._threads + 1, "decode")
        self._large = ThreadPoolExecutor(self._threads, "large")  # 50 KB may take a second
        # Where pictures lie may be slow, what lists or counts images, and imports send hundreds of
        # pictures at once: no search waits for it.
        self._pictures, self._listing, self._counting, self._uploads = (
            ThreadPoolExecutor(self._threads + 1, what)
            for what in ("pictures", "listing", "counting", "uploads")
        )
        self._store = GalleryStore.open(args, name)
        self._engine: Engine | None = None
        self.refused: str | None = None
        self.refused_because = ""
        self.pictures = GalleryPictures(args, self._store)
        kinds = "searches", "writes", "imports", "events", "pictures and lists", "waits"
        queues = [Admission(args.max_queue, what) for what in kinds]
        self.searches, self.writes, self.imports, self.events, self.browsing, self._waiting = queues
        together: dict[str, Any] = {
            "most": args.max_batch_size,
            "size": lambda one: max(1, len(one[1].pictures)),
            "wait_s": args.batch_wait_s,
            "thread": self._model,
        }
        self._answers = Batcher(self._answer_batch, **together)
        self._encodings = Batcher(self._encode_batch, **together)
        self.writer = (
            None
            if self._store is None
            else Writer(self._store, self._model, self._uploads, args.lag_s)
        )
        self.recorder = (
            Recorder(self._store.gallery_db, args, observer)
            if args.events and self._store is not None
            else None
        )

        self.second = SecondModel(args.second, self._load) if args.second.users else None

    @property
    def is_loaded(self) -> bool:
        """Whether there is an engine."""
        return self._engine is not None

    @property
    def engine(self) -> Engine:
        """The engine that new requests use."""
        assert self._engine is not None, "change_bundle comes first"
        return self._engine

    def engine_of(self, user: str) -> Engine:
        """Return the engine that answers a user; "" is nobody, who gets the first."""
        second = self.second.of(user) if self.second and user else None
        return second or self.engine

    def view_with(self, image_id: str, view: State) -> State:
        """Return the first model's view or, where it lacks an image, the second's.

        Of two bundles each may have a gallery of its own.
        """
        second = self.second.engine if self.second else None
        return second.view if second is not None and view.find(image_id) is None else view

    async def change_bundle(self, wanted: dict[str, Any]) -> None:
        """Load the bundle that is wanted (args.Wanted), or change to it, or refuse it and go on.

        A replica that starts when what is wanted is refused loads the bundle of its settings.

        Raises:
            RaycdError: That one is refused, too, so that there is nothing to go on with.
        """
        try:
            await self._change(Wanted.model_validate(wanted).bundle)
            self.refused = None
        except Exception as error:
            own = Wanted(bundle=self.args.bundle).model_dump()
            if self._engine is None and {**wanted, "again": own["again"]} == own:
                raise
            self.refused, self.refused_because = swap.reason(error), format_error(error)
            _log.error("a bundle was refused, the old one goes on: %s", format_error(error))
        if self._engine is None:
            await self._change(self.args.bundle)
        if self.second is not None:
            await self.second.load(self.engine)
        if self.shadow is not None:
            self.shadow.start(await asyncio.to_thread(lambda: self.engine.without))

    async def _change(self, bundle: str) -> None:
        # The new bundle is loaded and tried beside the one at work, which goes on until then.
        old, folder = self._engine, await asyncio.to_thread(swap.folder, bundle)
        if old:
            digest = await asyncio.to_thread(swap.digest, folder)
            if digest == old.bundle.manifest.digest:
                return
        fresh = await asyncio.to_thread(self._load, folder)
        try:
            await self._check_canary(fresh)
            if old:
                if isinstance(fresh.follower, EngineFollower):  # it encodes what is left, too
                    await asyncio.to_thread(fresh.follower.wait_until_current)
                # A follower of a search engine looks through the whole database for them
                await asyncio.to_thread(lambda: swap.check(old.without, fresh.without))
        except BaseException:
            fresh.close()
            raise
        self._engine = fresh
        if old:
            old.close()
        _log.warning("this replica serves bundle %s", fresh.bundle.manifest.digest[:12])

    def _load(self, folder: Path) -> Engine:
        return Engine(
            folder,
            self.args,
            threads=self._threads,
            model=self._model,
            store=self._store,
            encoders=self._encoders,
        )

    def bundle_info(self) -> BundleInfo:
        """Return which bundle this replica serves, and why it refused another."""
        manifest = self.engine.bundle.manifest
        return BundleInfo(
            digest=manifest.digest[:12], created=manifest.created, refused=self.refused
        )

    def second_info(self) -> SecondInfo | None:
        """Return what there is of a second model."""
        second = self.second or self.shadow
        return second.info() if second else None

    async def check_canary(self) -> None:
        """Encode and search, before all queries that wait. Raises where this replica cannot.

        A search engine that has the gallery is no part of it: `check_gallery` asks that.
        """
        self._observer.state(self)
        await self._check_canary(self.engine)
        if self.second is not None and self.second.engine is not None:
            await self._check_canary(self.second.engine)

    async def _check_canary(self, engine: Engine) -> None:
        canary = engine.inner_canary
        async with asyncio.timeout(CANARY_S):
            engine.check(await self._answers((engine, canary), first=True), canary.view)

    async def check_gallery(self) -> None:
        """Raise GalleryError where the gallery's SQLite file has gone or is another one.

        Or where the search engine that has the gallery does not answer, or is being filled.
        """
        engine = self.engine
        if self._store is not None:
            async with asyncio.timeout(CANARY_S):
                await asyncio.to_thread(self._store.gallery_db.check_file)
        if isinstance(engine.follower, EngineFollower):
            engine.follower.check()
            async with asyncio.timeout(CANARY_S):
                await self._answers((engine, engine.canary), first=True)

    def deadline(self, *, then: str = "") -> AbstractAsyncContextManager[None]:
        """Return the time that a request may take, for `async with`.

        `then` ends the message with what being late means.
        """
        return deadline(self.args.timeout_s, then=then)

    async def wait_for_version(self, version: int, user: str = "") -> Engine:
        """Return the engine that answers a user, once its view of the gallery has this version.

        Raises:
            NoSuchVersion: The database does not have it.
            Busy: Too many wait.
            GalleryError: The search engine that has the gallery does not answer, or is being
                filled.
        """
        engine = self.engine_of(user)
        if engine.follower is None or version <= engine.view.version:
            return engine
        if isinstance(engine.follower, EngineFollower):
            engine.follower.check()
        with self._waiting.slot():
            while engine.follower and version > engine.view.version:
                if not await engine.follower.wait_for_version(version):
                    raise NoSuchVersion(version, newest=engine.view.version)
                engine = self.engine_of(user)  # it may have been replaced meanwhile
        return engine

    async def prepare(
        self, engine: Engine, asked: QueryRequest, sent: Sequence[QueryImage]
    ) -> Prepared:
        """Decode and preprocess a query beside the model. Raises as `queries.prepare`."""
        files = [one.file for one in sent if one.file is not None]
        return await self.run_in_thread(
            lambda: queries.prepare(engine, self.args, asked, sent), files
        )

    def decode(self, image: bytes, engine: Engine) -> Image.Image:
        """Return an image within the limits, for an engine. Raises BrokenImage."""
        return queries.decode(image, self.args, engine)

    def further_images(self, sent: Sequence[QueryImage]) -> AbstractContextManager[None]:
        """Hold a search's slot for each image but the first: each is decoded and encoded.

        Raises Busy where there are none. A search of more images than slots gets all of them.
        """
        return self.searches.slot(max(0, min(len(sent), self.searches.most) - 1))

    async def answer(self, engine: Engine, query: Prepared) -> Answer:
        """Search, together with the queries that come while the model is at work.

        Raises NothingLeft where the query comes to nothing.
        """
        answer = await self._answers((engine, query))
        if answer.is_empty:
            raise NothingLeft
        return answer

    async def encode(self, engine: Engine, query: Prepared) -> Encoded:
        """Return the features of a query, encoded with those that come meanwhile.

        Raises NothingLeft.
        """
        encoded = await self._encodings((engine, query))
        if encoded.is_empty:
            raise NothingLeft
        return encoded

    def _encode_batch(self, batch: Sequence[tuple[Engine, Prepared]]) -> list[Encoded | Exception]:
        def encoded(engine: Engine, prepared: list[Prepared]) -> list[Encoded]:
            features = engine.searcher.encode(prepared)
            return [features.row(row) for row in range(len(prepared))]

        return each(batch, encoded)

    def _answer_batch(self, batch: Sequence[tuple[Engine, Prepared]]) -> list[Answer | Exception]:
        # With a second model, or while one replaces the other, there are two: one may fail alone.
        # A search engine that is away is asked once.
        found = each(
            batch,
            lambda engine, some: engine.searcher.answer(some),
            again=lambda engine, some: not engine.asks_outside(some[0]),
        )
        answers = [answer for answer in found if isinstance(answer, Answer)]
        if answers:
            self._observer.batch(answers[0], self.searches.busy)
        return found

    def close(self) -> None:
        """Write the feedback that waits."""
        if self.recorder is not None:
            self.recorder.stop()

    async def read_picture(self, work: Callable[[], T]) -> T:
        """Do what reads and decodes a picture of the gallery, as long as it is waited for."""
        return await run_in_thread(self._pictures, work)

    async def list_gallery(self, work: Callable[[], T]) -> T:
        """Do what lists images of the gallery, as long as it is waited for."""
        return await run_in_thread(self._listing, work)

    async def count(self, work: Callable[[], T]) -> T:
        """Do what counts images of the gallery for a search, as long as it is waited for."""
        return await run_in_thread(self._counting, work)

    async def take_upload(self, work: Callable[[], T]) -> T:
        """Do what decodes a picture for the gallery, as long as it is waited for."""
        return await run_in_thread(self._uploads, work)

    async def run_in_thread(self, work: Callable[[], T], files: Sequence[bytes] = ()) -> T:
        """Do what takes milliseconds beside the event loop, as long as it is waited for.

        `files` are what it decodes: where that takes longer, no work but its like waits for it.
        """
        threads = self._small
        if len(files) and await run_in_thread(threads, lambda: any(map(_is_large, files))):
            threads = self._large
        return await run_in_thread(threads, work)


def _is_large(data: bytes) -> bool:
    try:
        with Image.open(BytesIO(data), formats=images.FORMATS) as image:
            return image.width * image.height > LARGE
    except Exception:  # of Pillow's many kinds: decoding says what is wrong
        return False
