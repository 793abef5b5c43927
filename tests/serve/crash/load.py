"""Many clients at once that write, import and search, whatever happens to the service, and know
what they were answered.

Each id has one client that writes it, so that what it must be is known at any time. What finds the
service busy, or gets no answer, is sent again, as `raycd.client` does.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx

from tests.serve.crash.process import wait_until
from tests.serve.crash.truth import Image, Ledger

IDS = 3  # of a writer
LINES, IMPORT_IDS = 12, 8  # of an import; some ids come twice
DELETES, PICTURES, READS = 0.3, 0.1, 0.2  # shares of the writes; READS: that are looked for at once
TIMEOUT_S = (
    120.0  # longer than the service's own, so that what is given up is given up by the service
)


@dataclass(frozen=True)
class Gallery:
    """What clients must know of the gallery."""

    encoder: str
    dim: int
    seeds: Sequence[str]
    """Images that nobody writes."""


class Load:
    """Clients that can be set to work again and again.

    Attributes:
        ledger: What they wrote.
        written, searched: Writes acknowledged, and searches answered.
        unanswered: Requests that had to be sent again, by what came instead of an answer.
    """

    def __init__(
        self,
        url: str,
        gallery: Gallery,
        clients: Mapping[type[Client], int],
        *,
        pictures: float = PICTURES,
    ) -> None:
        self.url, self.gallery, self.clients, self.pictures = url, gallery, clients, pictures
        self.ledger, self.tags = Ledger(), itertools.count()
        self.written = self.searched = 0
        self.unanswered: Counter[str] = Counter()
        self.goes_on = self.gives_up = False
        self._done: Future[None] = Future()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Have the clients work; in the end each finishes what it has begun, unless they
        have given up.
        """
        self.goes_on, self.gives_up = True, False
        with ThreadPoolExecutor(1) as thread:
            self._done = thread.submit(asyncio.run, self._clients())
            try:
                yield
            except BaseException:
                self.give_up()
                raise
            finally:
                self.goes_on = False
            self._done.result()

    def give_up(self) -> None:
        """Send nothing again from here on, and begin nothing new."""
        self.goes_on, self.gives_up = False, True

    def advance(self, writes: int) -> None:
        """Wait until that many more writes are acknowledged, and some more searches answered."""
        enough = self.written + writes
        self._wait(lambda: self.written >= enough, f"{writes} more writes")
        self.advance_searches(writes // 10)

    def advance_searches(self, searches: int) -> None:
        """Wait until that many more searches are answered, whatever becomes of the writes."""
        enough = self.searched + searches
        self._wait(lambda: self.searched >= enough, f"{searches} more searches")

    def _wait(self, state: Callable[[], bool], what: str) -> None:
        wait_until(lambda: self._done.done() or state(), what)
        if self._done.done():  # a client has seen what must not be
            self._done.result()

    async def _clients(self) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with (
            httpx.AsyncClient(base_url=self.url, limits=limits, timeout=TIMEOUT_S) as http,
            asyncio.TaskGroup() as group,
        ):
            for kind, count in self.clients.items():
                for number in range(count):
                    group.create_task(kind(self, f"{kind.__name__.lower()}-{number}", http).run())


class Client:
    """A client that asks, waits for the answer, and asks again."""

    def __init__(self, load: Load, name: str, http: httpx.AsyncClient) -> None:
        self.load, self.name, self.http = load, name, http
        self.random = random.Random(name)

    async def run(self) -> None:
        """Take turn after turn."""
        while self.load.goes_on:
            await self.turn()

    async def turn(self) -> None:
        raise NotImplementedError

    async def ask(
        self, method: str, path: str, **content: Any
    ) -> tuple[httpx.Response | None, int]:
        """Return the answer and its tries; None: given up before there was one."""
        for tries in itertools.count(1):
            try:
                response = await self.http.request(method, path, **content)
            except httpx.TransportError as error:
                await self.again(type(error).__name__)
            else:
                if is_answer(response):
                    return response, tries
                await self.again(str(response.status_code))
            if self.load.gives_up:
                return None, tries
        raise AssertionError("the count has no end")

    async def again(self, instead: str) -> None:
        """Wait a moment before the next try."""
        self.load.unanswered[instead] += 1
        await asyncio.sleep(self.random.uniform(0.1, 0.5))

    def new_image(self) -> Image:
        """Return an image that nobody has written before."""
        return Image(
            f"{self.name}-{next(self.load.tags)}",
            pictured=self.random.random() < self.load.pictures,
        )

    def note_versions(self, versions: list[int]) -> None:
        """Note the writes of one request that are acknowledged."""
        if versions:
            self.load.ledger.versions[self.name].append(versions)
            self.load.written += len(versions)


def is_answer(response: httpx.Response) -> bool:
    """Return whether the service has answered, rather than been busy, or died with the request."""
    ours = "json" in response.headers.get("content-type", "")
    return response.status_code != 503 and (response.status_code < 500 or ours)


class Writer(Client):
    """Puts and deletes its few images, and looks whether they are found."""

    async def turn(self) -> None:
        image_id = f"{self.name}/{self.random.randrange(IDS)}"
        known = self.load.ledger.known[image_id]
        gone = known.acknowledged is not None and self.random.random() < DELETES
        version = await self.write(image_id, None if gone else self.new_image())
        if version is not None and self.random.random() < READS:
            await self.read_back(image_id, version)

    async def write(self, image_id: str, image: Image | None) -> int | None:
        """Write, and return the version."""
        ledger, gallery = self.load.ledger, self.load.gallery
        before = ledger.known[image_id].possible
        ledger.sent(image_id, image)
        method, body = ("DELETE", {}) if image is None else ("PUT", content(image, gallery))
        response, tries = await self.ask(method, f"/v1/gallery/{quote(image_id, safe='')}", **body)
        if response is None:
            return None
        assert response.status_code in (200, 404 if image is None else 201), (
            f"{image_id}: {response.text}"
        )
        existed, possible = response.status_code == 200, before if tries == 1 else [*before, image]
        assert any((state is not None) == existed for state in possible), (
            f"{image_id} {existed=}: {possible}"
        )
        version = None if response.status_code == 404 else int(response.json()["version"])
        ledger.acknowledged(image_id, image, version)
        self.note_versions([] if version is None else [version])
        return version

    async def read_back(self, image_id: str, version: int) -> None:
        """Check that any replica finds what was written, from that version on."""
        asked = {"image_id": image_id, "top_k": 1}
        response, _ = await self.ask(
            "POST", "/v1/search", params={"min_version": version}, json=asked
        )
        if response is None:
            return
        image = self.load.ledger.known[image_id].acknowledged
        if image is None:
            assert response.status_code == 404, f"{image_id} was deleted: {response.text}"
            return
        assert response.status_code == 200, response.text
        [found] = response.json()["results"]
        assert (found["image_id"], found["attributes"]) == (image_id, image.attributes)


def content(image: Image, gallery: Gallery) -> dict[str, Any]:
    """Return a form where there is a picture, else JSON."""
    if not image.pictured:
        return {"json": image.body(gallery.encoder, gallery.dim)}
    labels = {"category": image.category, "attributes": json.dumps(image.attributes)}
    return {"files": {"image": ("image.png", image.picture(), "image/png")}, "data": labels}


class Importer(Client):
    """Imports its images again and again, and sends unacknowledged lines once more."""

    async def turn(self) -> None:
        lines = [
            (f"{self.name}/{self.random.randrange(IMPORT_IDS)}", self.new_image())
            for _ in range(LINES)
        ]
        while lines:
            for image_id, image in lines:
                self.load.ledger.sent(image_id, image)
            lines = await self.settle(lines)
            if lines and self.load.gives_up:
                return

    async def settle(self, lines: list[tuple[str, Image]]) -> list[tuple[str, Image]]:
        """Send lines; return those that were not acknowledged, in their order."""
        gallery, left, versions = self.load.gallery, dict(enumerate(lines, 1)), []
        bodies = [
            {"image_id": image_id, **image.body(gallery.encoder, gallery.dim)}
            for image_id, image in lines
        ]
        content, headers = (
            "\n".join(map(json.dumps, bodies)),
            {"content-type": "application/x-ndjson"},
        )
        try:
            async with self.http.stream(
                "POST", "/v1/gallery:import", content=content, headers=headers
            ) as response:
                if not is_answer(response):
                    await self.again(str(response.status_code))
                    return lines
                assert response.status_code == 200, response.status_code
                async for line in response.aiter_lines():
                    item = json.loads(line)
                    if item["status"] == 503:
                        self.load.unanswered["503 of a line"] += 1
                        continue
                    assert item["status"] in (200, 201), line
                    image_id, image = left.pop(item["line"])
                    self.load.ledger.acknowledged(image_id, image, item["version"])
                    versions.append(item["version"])
        except httpx.TransportError as error:
            await self.again(type(error).__name__)
        self.note_versions(versions)
        return list(left.values())


class Searcher(Client):
    """Asks for what nobody writes: it must be there each time."""

    async def turn(self) -> None:
        seed = self.random.choice(self.load.gallery.seeds)
        asked = {"image_id": seed, "top_k": 3, "exact": self.random.random() < 0.5}
        response, _ = await self.ask("POST", "/v1/search", json=asked)
        if response is not None:
            assert response.status_code == 200, response.text
            assert response.json()["results"][0]["image_id"] == seed
            self.load.searched += 1
