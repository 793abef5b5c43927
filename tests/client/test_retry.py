"""What is sent again, when, and for how long."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from raycd import retry_after
from raycd.client import Client, Retries, ServiceError
from raycd.client.retry import Attempts
from tests.client.scripted import Reply, Service, Waits, found, problem, refusal

DROPPED = Reply(0)


@pytest.mark.parametrize("status", [503, 429])
def test_a_busy_service_is_asked_again_not_before_it_says(
    client: Client, service: Service, waits: Waits, status: int
) -> None:
    service.answers(refusal(status, after="3"), Reply(body=found("a")))
    answer = client.search(image=b"pixels", text="is blue")
    assert answer.results[0].image_id == "a"
    [wait] = waits.seconds
    assert 3 < wait <= 3.25
    first, second = service.asked
    assert b"pixels" in second.body
    assert len(first.body) == len(second.body)


def test_the_time_to_come_back_may_be_a_date(
    client: Client, service: Service, waits: Waits
) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    service.answers(refusal(429, after=date), Reply(body=found()))
    client.search(text="x")
    [wait] = waits.seconds
    assert 57 < wait <= 60.25


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        (" 7 ", 7),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),  # over
        ("Wed, 21 Oct 2015 07:28:00 -0000", 0),
        ("", None),
        ("-1", None),
        ("1.5", 1.5),
        (".", None),
        ("nan", None),
        ("soon", None),
        ("Wed, 99 Oct 2015 07:28:00 GMT", None),
        ("Wed, 21 Oct 2015 07:28:00 +99999999999999", None),
    ],
)
def test_the_header_retry_after_is_read_or_ignored(value: str, seconds: float | None) -> None:
    assert retry_after.seconds(value) == seconds


def test_without_a_time_the_waits_double_and_are_not_alike(
    client: Client, service: Service, waits: Waits
) -> None:
    service.answers(*[refusal(503)] * 4, Reply(body=found()))
    client.search(text="x")
    for wait, longest in zip(waits.seconds, (0.25, 0.5, 1, 2), strict=True):
        assert longest / 2 <= wait <= longest
    assert len({wait / 2**number for number, wait in enumerate(waits.seconds)}) == 4


def test_after_the_last_try_the_refusal_is_told_with_its_time(
    client: Client, service: Service
) -> None:
    service.answers(*[refusal(503, "the queue is full", after="2")] * 5)
    with pytest.raises(ServiceError, match="the queue is full") as caught:
        client.search(text="x")
    assert "try again later in 2 s, as it asks (tried 5 times)" in str(caught.value)
    assert (caught.value.status, caught.value.retry_after) == (503, 2)


def test_a_wait_beyond_the_deadline_is_not_begun(
    connect: Callable[..., Client], service: Service, waits: Waits
) -> None:
    service.answers(refusal(503, after="4"), refusal(503, after="8"))
    with pytest.raises(ServiceError) as caught:
        connect(deadline=10).search(text="x")
    assert len(waits.seconds) == 1
    assert caught.value.retry_after == 8


def test_an_endless_time_to_wait_is_given_up_at_once(
    client: Client, service: Service, waits: Waits
) -> None:
    service.answers(refusal(503, after="9" * 400))
    with pytest.raises(ServiceError):
        client.search(text="x")
    assert waits.seconds == []


@pytest.mark.parametrize("status", [400, 403, 404, 408, 413, 415, 422, 500, 502, 504])
def test_other_refusals_are_not_asked_again(client: Client, service: Service, status: int) -> None:
    service.answers(refusal(status, after="1"))
    with pytest.raises(ServiceError) as caught:
        client.search(text="x")
    assert caught.value.status == status
    assert len(service.asked) == 1


@pytest.mark.parametrize("status", [500, 502, 504])
def test_what_a_proxy_says_of_a_lost_replica_is_asked_again(
    client: Client, service: Service, status: int
) -> None:
    service.answers(Reply(status, b"Internal Server Error", "text/plain"), Reply(body=found("a")))
    assert client.search(text="x").results[0].image_id == "a"


def test_a_dropped_connection_is_tried_again(
    client: Client, service: Service, waits: Waits
) -> None:
    service.answers(DROPPED, DROPPED, Reply(body=found("a")))
    assert client.search(text="x").results[0].image_id == "a"
    assert len(waits.seconds) == 2


def test_a_connection_that_is_always_dropped_is_told(
    connect: Callable[..., Client], service: Service
) -> None:
    service.answers(DROPPED, DROPPED)
    with pytest.raises(ServiceError, match=f"{service.url} ended the connection") as caught:
        connect(count=1).search(text="x")
    assert "tried 2 times" in str(caught.value)


def test_no_retries_means_one_try(service: Service) -> None:
    service.answers(refusal(503, after="1"))
    with Client(service.url, retries=0) as client, pytest.raises(ServiceError, match="503"):
        client.search(text="x")


def test_readiness_is_asked_once(client: Client, service: Service) -> None:
    service.answers(refusal(503, "1 of 2 replicas answer", after="1"))
    with pytest.raises(ServiceError, match="1 of 2 replicas"):
        client.ready()


def ok(image_id: str) -> dict[str, Any]:
    return {"status": 200, "response": found(image_id)}


BUSY = {"status": 503, "problem": problem(503, "the queue is full")}


def test_the_searches_of_a_batch_that_found_the_service_busy_are_sent_again(
    client: Client, service: Service
) -> None:
    service.answers(
        Reply(body={"items": [BUSY, ok("b"), BUSY]}), Reply(body={"items": [ok("a"), ok("c")]})
    )
    answer = client.search_batch([{"text": "1"}, {"text": "2"}, {"text": "3"}])
    assert [item.response and item.response.results[0].image_id for item in answer.items] == [
        "a",
        "b",
        "c",
    ]
    assert service.asked[1].json() == {"searches": [{"text": "1"}, {"text": "3"}]}


def test_the_queries_of_a_batch_to_embed_are_sent_again_likewise(
    client: Client, service: Service
) -> None:
    done = {"status": 200}
    service.answers(Reply(body={"items": [BUSY, done]}), Reply(body={"items": [done]}))
    answer = client.embed_batch([{"text": "1"}, {"text": "2"}])
    assert [item.status for item in answer.items] == [200, 200]
    assert service.asked[1].json() == {"queries": [{"text": "1"}]}


def test_what_a_batch_found_is_not_lost_when_the_rest_is_refused(
    connect: Callable[..., Client], service: Service
) -> None:
    service.answers(Reply(body={"items": [ok("a"), BUSY]}), *[refusal(503)] * 2)
    answer = connect(count=2).search_batch([{"text": "1"}, {"text": "2"}])
    assert [item.status for item in answer.items] == [200, 503]


@pytest.mark.parametrize("reply", [refusal(500), refusal(413), Reply(body={"items": []})])
def test_what_a_batch_found_is_not_lost_when_the_rest_fails(
    connect: Callable[..., Client], service: Service, reply: Reply
) -> None:
    service.answers(Reply(body={"items": [ok("a"), BUSY]}), reply)
    answer = connect(count=2).search_batch([{"text": "1"}, {"text": "2"}])
    assert [item.status for item in answer.items] == [200, 503]


def test_a_wait_has_a_longest_however_often_it_is_tried() -> None:
    attempts = Attempts(Retries(count=5000, deadline=1e9, clock=lambda: 0.0))
    waits = [attempts.next_wait() for _ in range(2000)]
    assert all(wait is not None and 4 <= wait <= 8 for wait in waits[5:])
