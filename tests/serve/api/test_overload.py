"""A full service refuses at once, keeps its deadline, and answers again as soon as it can."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from serve.args import DEFAULT, ServeArgs
from serve.galleries import Galleries
from tests.serve.asking import ask, png, problem


@pytest.fixture(scope="module")
def started() -> list[Galleries]:
    """Keep the galleries of `small`, once they are there."""
    return []


@pytest.fixture(scope="module")
def small(
    start_replica: Callable[..., str], service_args: ServeArgs, started: list[Galleries]
) -> str:
    """Start a service that takes on two searches at a time."""
    changes = {
        "max_queue": 2,
        "text_cache": 0,
        "max_batch": 4,
        "batch_wait_s": 1.0,
        "max_batch_size": 8,
    }
    return start_replica(service_args.model_copy(update=changes), "small", started.append)


def test_what_is_too_much_is_refused_at_once_and_the_rest_is_answered(
    small: str, tiny_bundle: Any
) -> None:
    data = png(tiny_bundle.images[0])
    with httpx.Client(base_url=small, timeout=60) as client:

        def one(number: int) -> tuple[httpx.Response, float]:
            began = time.monotonic()
            return ask(client, data, text=f"is number {number}"), time.monotonic() - began

        with ThreadPoolExecutor(12) as threads:
            answers = list(threads.map(one, range(12)))
        assert {response.status_code for response, _ in answers} == {200, 503}
        refused = [
            (response, seconds) for response, seconds in answers if response.status_code == 503
        ]
        for response, _ in refused:
            assert "max_queue" in problem(response, 503)["detail"]
            assert int(response.headers["retry-after"]) >= 1
        served = [seconds for response, seconds in answers if response.status_code == 200]
        assert max(served) >= 1.0  # the first waited for others
        assert min(seconds for _, seconds in refused) < 1.0  # these for nobody
        assert one(99)[0].status_code == 200


def batch(url: str) -> list[int]:
    """Send four searches to a service of two slots; return what becomes of each."""
    body = {"searches": [{"text": f"is number {number}"} for number in range(4)]}
    items = httpx.post(f"{url}/v1/search/batch", json=body, timeout=60).json()["items"]
    return [item["status"] for item in items]


def test_searches_of_a_batch_wait_for_one_another(small: str) -> None:
    assert batch(small) == [200, 200, 200, 200]


def test_searches_of_a_batch_that_find_no_slot_fail_alone(
    small: str, started: list[Galleries]
) -> None:
    replica, let_go = started[0][DEFAULT], threading.Event()
    replica._model.submit(let_go.wait)
    try:
        with ThreadPoolExecutor(2) as threads:
            other = threads.submit(
                httpx.post, f"{small}/v1/search", json={"text": "is another"}, timeout=60
            )
            while not replica.searches.busy:
                time.sleep(0.01)
            sent = threads.submit(batch, small)
            while replica.searches.busy < 2:
                time.sleep(0.01)
            let_go.set()
            assert sent.result() == [200, 503, 200, 200]
            assert other.result().status_code == 200
    finally:
        let_go.set()


@pytest.fixture(scope="module")
def hasty(start_replica: Callable[..., str], service_args: ServeArgs) -> str:
    """Start a service whose deadline is shorter than the wait for a batch."""
    changes = {"timeout_s": 0.2, "batch_wait_s": 8.0}
    return start_replica(service_args.model_copy(update=changes), "hasty")


def test_no_header_of_a_client_switches_the_deadline_off(hasty: str) -> None:
    for headers in ({}, {"x-request-timeout-seconds": "0"}, {"x-request-timeout-seconds": "60"}):
        response = httpx.post(
            f"{hasty}/v1/search", json={"text": "is blue"}, headers=headers, timeout=60
        )
        assert "timeout_s" in problem(response, 503)["detail"]
        assert "retry-after" in response.headers
