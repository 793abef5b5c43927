"""What stops with its request: work in threads, bodies that come in; and how a service drains."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from serve.api.health import FRESH_S, Shared
from serve.api.middleware import InFlight
from serve.errors import Busy
from serve.load import admission
from serve.security.front import ProxyPaths


def test_work_in_a_thread_stops_with_its_deadline() -> None:
    ended = threading.Event()

    def work() -> None:
        try:
            while True:
                admission.check_deadline()
        finally:
            ended.set()

    async def ask() -> None:
        with ThreadPoolExecutor(1) as threads:
            async with admission.deadline(0.1):
                await admission.run_in_thread(threads, work)

    with pytest.raises(Busy, match="timeout_s"):
        asyncio.run(asyncio.wait_for(ask(), 20))
    assert ended.wait(20)
    admission.check_deadline()  # this thread works for no request


def test_what_many_ask_at_once_is_done_once_and_again_when_it_is_old() -> None:
    done = 0

    async def work() -> int:
        nonlocal done
        done += 1
        await asyncio.sleep(0.05)
        return done

    async def ask() -> None:
        shared = Shared(work)
        gone = asyncio.create_task(shared())
        await asyncio.sleep(0)
        gone.cancel()  # takes it from nobody
        assert await asyncio.gather(*(shared() for _ in range(150))) == [1] * 150
        assert await shared() == 1
        assert 0.05 <= shared.age_s <= FRESH_S
        await asyncio.sleep(FRESH_S)
        assert await shared() == 2

    asyncio.run(ask())


def test_a_service_that_drains_waits_for_what_is_under_way_as_long_as_it_may() -> None:
    async def ask() -> None:
        in_flight = InFlight()
        assert not await in_flight.drain(60)
        in_flight.count = 1
        closing = asyncio.create_task(in_flight.drain(60))
        await asyncio.sleep(0.1)
        assert not closing.done()
        in_flight.count = 0
        assert await asyncio.wait_for(closing, 20)
        in_flight.count = 1
        assert await asyncio.wait_for(in_flight.drain(0.1), 20)  # it still is

    asyncio.run(ask())


def test_the_paths_of_the_proxy_answer_no_strange_host() -> None:
    client = TestClient(ProxyPaths(Starlette(), ["localhost", "[::1]"]))
    for host, status in (("localhost:8000", 404), ("[::1]:80", 404), ("evil.example", 421)):
        assert client.get("/-/routes", headers={"Host": host}).status_code == status
    assert client.get("/-/healthz", headers={"Host": "10.0.0.1"}).status_code == 404
    anybody = TestClient(ProxyPaths(Starlette(), []))
    assert anybody.get("/-/routes", headers={"Host": "evil.example"}).status_code == 404


def test_a_deadline_ends_no_later_than_what_it_is_a_part_of() -> None:
    async def late() -> None:
        with admission.all_within(0.1):
            await asyncio.sleep(0.2)
            with pytest.raises(Busy, match="timeout_s"):
                async with admission.deadline(30):
                    await asyncio.sleep(10)
        async with admission.deadline(30):
            await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(late(), 5))
