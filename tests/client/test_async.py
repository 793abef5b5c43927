"""The client in an event loop: the same requests, answers and patience as the blocking one."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar, assert_type
from urllib.parse import parse_qs, urlsplit

import pytest

from raycd.api import Info, SearchResponse, Written
from raycd.client import AsyncClient, Client, Retries, ServiceError
from raycd.client.client import Client as Blocking
from raycd.errors import ConfigError, DataError
from tests.client.scripted import (
    Asked,
    Reply,
    Service,
    found,
    info,
    item,
    refusal,
    written,
)

T = TypeVar("T")
QUICK = Retries(count=4, deadline=120, clock=lambda: 0.0)


def ask(service: Service, what: Callable[[AsyncClient], Awaitable[T]]) -> T:
    """Return what a client of the service gives, in an event loop of its own."""

    async def asked() -> T:
        async with AsyncClient(service.url, retries=QUICK) as client:
            return await what(client)

    return asyncio.run(asked())


@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Have waits take no time; give their seconds."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setitem(globals(), "QUICK", replace(QUICK, sleep=sleep))
    return waits


def test_a_search_sends_what_the_blocking_client_sends(service: Service) -> None:
    service.answers(Reply(body=found("a")), Reply(body=found("a")))
    answer = ask(service, lambda client: client.search(image=b"pixels", text="is blue", top_k=3))
    with Client(service.url) as blocking:
        assert blocking.search(image=b"pixels", text="is blue", top_k=3) == answer
    first, second = service.asked
    boundaries = [one.headers["content-type"].partition("boundary=")[2] for one in (first, second)]
    bodies = [
        one.body.replace(boundary.encode(), b"")
        for one, boundary in zip((first, second), boundaries, strict=True)
    ]
    assert first.path == second.path
    assert bodies[0] == bodies[1]


def test_whoever_asks_is_named_in_a_header(service: Service) -> None:
    vectors: dict[str, Any] = {"query": [1.0], "image": None, "text": None, "encoder": "e"}
    vectors |= {"head": "h", "warnings": [], "timings": {}}
    batch = {"items": [{"status": 200, "response": found("a")}]}
    several = {"items": [{"status": 200, "embedding": vectors}]}
    service.answers(*(Reply(body=body) for body in (found("a"), batch, vectors, several)))
    service.answers(Reply(body=found("a")))

    async def all_ways(client: AsyncClient) -> None:
        await client.search(text="is blue", user="ann")
        await client.search_batch([{"text": "is blue"}], user="ann")
        await client.embed(text="is blue", user="ann")
        await client.embed_batch([{"text": "is blue"}], user="ann")
        await client.search(text="is blue")
        for user in ("Zo\u00eb", "ann "):
            with pytest.raises(DataError, match="a header cannot carry the user"):
                await client.search(text="is blue", user=user)

    ask(service, all_ways)
    users = [asked.headers.get("raycd-user") for asked in service.asked]
    assert users == ["ann"] * 4 + [None]


def test_searches_that_are_awaited_together_are_under_way_together(service: Service) -> None:
    together = threading.Barrier(3, timeout=10)

    def when_all_are_there(asked: Asked) -> Reply:
        together.wait()
        return Reply(body=found("a"))

    service.answers(*[when_all_are_there] * 3)

    async def three(client: AsyncClient) -> list[SearchResponse]:
        return await asyncio.gather(*(client.search(text=text) for text in ("a", "b", "c")))

    assert len(ask(service, three)) == 3


def test_a_busy_service_is_asked_again_after_the_time_that_it_names(
    service: Service, no_waits: list[float]
) -> None:
    service.answers(refusal(503, after="7"), Reply(body=found("a")))
    ask(service, lambda client: client.search(text="x"))
    [wait] = no_waits
    assert 7 < wait < 8


def test_a_broken_connection_is_tried_again_and_a_refusal_is_an_error(
    service: Service, no_waits: list[float]
) -> None:
    service.answers(Reply(0), refusal(422, "no such field"))
    with pytest.raises(ServiceError, match="no such field") as caught:
        ask(service, lambda client: client.search(text="x"))
    assert (caught.value.status, len(no_waits)) == (422, 1)


def test_the_busy_searches_of_a_batch_are_sent_again(
    service: Service, no_waits: list[float]
) -> None:
    busy, answer = {"status": 503}, {"status": 200, "response": found("a")}
    service.answers(Reply(body={"items": [answer, busy]}), Reply(body={"items": [answer]}))
    made = ask(service, lambda client: client.search_batch([{"text": "a"}, {"text": "b"}]))
    assert [each.status for each in made.items] == [200, 200]
    assert service.asked[1].json() == {"searches": [{"text": "b"}]}


def test_the_gallery_is_iterated_page_by_page(service: Service) -> None:
    page = {"offset": 0, "total": 3, "index": found()["index"], "warnings": []}
    service.answers(
        Reply(body=info(page=2)),
        Reply(body={**page, "items": [item("a"), item("b")]}),
        Reply(body={**page, "offset": 2, "items": [item("c")]}),
    )

    async def ids(client: AsyncClient) -> list[str]:
        return [image.image_id async for image in client.iter_gallery()]

    assert ask(service, ids) == ["a", "b", "c"]


def test_an_attribute_whose_name_has_a_colon_is_not_sent_as_a_pair(service: Service) -> None:
    service.answers(Reply(body={"items": [], "offset": 0, "total": 0, "version": 1}))
    wanted: Any = {"size:eu": ["42"], "colour": ["red"], "price": {"gt": 1}}
    ask(service, lambda client: client.gallery(attributes=wanted))
    sent = parse_qs(urlsplit(service.asked[0].path).query)
    assert sent["attribute"] == ["colour:red"]
    assert json.loads(sent["attributes"][0]) == {"size:eu": ["42"], "price": {"gt": 1}}


def test_a_second_event_loop_is_refused_with_what_to_do(service: Service) -> None:
    service.answers(*[Reply(body=info())] * 2)
    client = AsyncClient(service.url)

    async def asked_and_kept() -> Info:
        return await client.info()

    async def asked_and_closed() -> Info:
        async with client:
            return await client.info()

    with asyncio.Runner() as first:
        first.run(asked_and_kept())
        for again in (asked_and_kept, client.close):
            with pytest.raises(ConfigError, match="second event loop"):
                in_a_thread(again)
        first.run(asked_and_closed())


def in_a_thread(what: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Return what a coroutine gives in an event loop of another thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(what())).result()


def test_a_request_that_is_cancelled_leaves_the_client_usable(service: Service) -> None:
    released = threading.Event()

    def late(asked: Asked) -> Reply:
        released.wait(10)
        return Reply(body=found("late"))

    service.answers(late, Reply(body=found("a")))

    async def cancelled(client: AsyncClient) -> SearchResponse:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.search(text="late")
        released.set()
        return await client.search(text="x")

    assert ask(service, cancelled).results[0].image_id == "a"


def test_changes_are_awaited(service: Service) -> None:
    service.answers(Reply(201, written("a", 4)), refusal(404))

    async def change(client: AsyncClient) -> Written | None:
        made = await client.put("a", b"pixels", category=["dress"])
        assert made.version == 4
        return await client.delete("a", missing_ok=True)

    assert ask(service, change) is None


def test_the_blocking_client_has_the_types_and_words_of_the_other(service: Service) -> None:
    service.answers(Reply(body=info()), Reply(body=found()))
    with Blocking(service.url) as client:
        assert_type(client.info(), Info)  # mypy checks it
        assert_type(client.search(text="x"), SearchResponse)
    assert Blocking.search.__doc__ == AsyncClient.search.__doc__


def test_the_blocking_client_may_be_used_where_an_event_loop_runs(service: Service) -> None:
    service.answers(Reply(body=found("a")))

    async def notebook() -> SearchResponse:
        with Client(service.url) as client:
            return client.search(text="x")

    assert asyncio.run(notebook()).results[0].image_id == "a"
