"""POST /v1/events on a real replica, and what is kept of searches."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from raycd.api.events import UserEvent
from raycd.client import Client
from raycd.feedback.records import LoggedSession, sessions
from raycd.gallery_db import GalleryDatabase, events
from serve.args import DEFAULT, ServeArgs
from serve.galleries import Galleries
from serve.security.guard import needed_scope
from tests.serve.asking import fields, png, problem


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("events") / "gallery.sqlite"


@pytest.fixture(scope="module")
def started() -> list[Galleries]:
    """Keep the galleries, once they are there."""
    return []


@pytest.fixture(scope="module")
def url(
    start_replica: Callable[..., str],
    service_args: ServeArgs,
    database: Path,
    started: list[Galleries],
) -> str:
    """Start a replica that keeps events and swaps two results of every search, or does not."""
    settings = {"gallery": str(database), "events": True, "explore": 1.0, "max_events": 3}
    args = service_args.model_copy(update={**settings, "max_queue": 2})
    return start_replica(args, "events", started.append)


@pytest.fixture
def keeping(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, timeout=60)


def ubi(query_id: str, image_id: str, action: str = "click", **more: Any) -> dict[str, Any]:
    about = {
        "object": {"object_id": image_id, "object_id_field": "sku"},
        "position": {"ordinal": 2},
    }
    return {"action_name": action, "query_id": query_id, "event_attributes": about, **more}


def kept(database: Path, is_there: Callable[[LoggedSession], object]) -> LoggedSession:
    """Wait for a session that is written."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        with GalleryDatabase.open(str(database), migrate=False) as gallery_db:
            log = sessions(events.searches(gallery_db), events.events(gallery_db))
            for session in filter(is_there, log):
                return session
        time.sleep(0.1)
    raise AssertionError("it was never written")


def asked(query_id: str) -> Callable[[LoggedSession], bool]:
    return lambda session: session.search.query_id == query_id


def test_a_search_and_its_events_are_kept_and_nothing_of_who_did_it(
    keeping: httpx.Client, database: Path
) -> None:
    body = {"image_id": "image-2", "text": "is blue", "top_k": 5}
    found = keeping.post("/v1/search", json=body).json()
    shown = [result["image_id"] for result in found["results"]]
    who = {"client_id": "secret-client", "session_id": "secret-session", "user_query": "secret-q"}
    click = ubi(found["query_id"], shown[1], timestamp="2026-11-28T12:00:00Z", **who)
    sent = [click, ubi(found["query_id"], shown[3], "purchase", event_id="e-1")]
    for _ in range(2):  # a client that lost the answer sends it again
        answer = keeping.post("/v1/events", json={"events": sent})
        assert (answer.status_code, answer.json()) == (202, {"taken": 2})
    assert keeping.get("/v1/info").json()["events"]
    session = kept(database, lambda one: one.search.query_id == found["query_id"] and one.liked)
    assert session.actions == {shown[1]: {"click"}, shown[3]: {"purchase"}}
    search = session.search
    assert (search.reference, search.text, search.results) == ("image-2", "is blue", tuple(shown))
    assert search.scores == pytest.approx([r["relative_score"] for r in found["results"]], abs=1e-4)
    assert len(search.bundle) == 12
    assert search.first == 0
    with GalleryDatabase.open(str(database), migrate=False) as gallery_db:
        assert len([one for one in events.events(gallery_db) if one.event_id == "e-1"]) == 1
    files = database.parent.glob(f"{database.name}*")
    assert not any(b"secret" in file.read_bytes() for file in files)


def test_of_the_slice_half_is_swapped_and_it_is_recorded_where(
    keeping: httpx.Client, database: Path
) -> None:
    body = {"image_id": "image-4", "text": "is long", "top_k": 4}
    answers = [keeping.post("/v1/search", json=body).json() for _ in range(16)]
    swapped = 0
    for found in answers:
        query_id = found["query_id"]
        search = kept(database, asked(query_id)).search
        scores = [result["score"] for result in found["results"]]
        assert search.explored is not None
        first, second = search.explored
        if scores != sorted(scores, reverse=True):
            swapped += 1
            scores[first], scores[second] = scores[second], scores[first]
            assert scores == sorted(scores, reverse=True)
    assert 0 < swapped < 16
    later = keeping.post("/v1/search", json={**body, "offset": 4}).json()["query_id"]
    assert kept(database, lambda one: one.search.query_id == later).search.explored is None


def test_the_clients_method_sends_events_and_a_picture_that_was_sent_is_not_kept(
    url: str, database: Path, tiny_bundle: Any
) -> None:
    with Client(url) as client:
        found = client.search(image=png(tiny_bundle.images[0]), text="is red", top_k=2)
        image_id = found.results[0].image_id
        assert client.send_events([UserEvent.of(found.query_id, "dismiss", image_id)]) == 1
    session = kept(database, lambda one: one.search.query_id == found.query_id and one.actions)
    assert session.actions == {image_id: {"dismiss"}}
    assert session.search.reference is None


@pytest.mark.parametrize(
    ("events_sent", "field"),
    [
        ([], "events"),
        ([ubi("x", "image-1")], "events.0.query_id"),
        (
            [ubi("0" * 32, "image-1"), ubi("0" * 32, "")],
            "events.1.event_attributes.object.object_id",
        ),
        ([ubi("0" * 32, "image-1", "look")], "events.0.action_name"),
        ([ubi("0" * 32, "image-1", event_id="a b")], "events.0.event_id"),
        ([ubi("0" * 32, "image-1")] * 4, "events"),
    ],
)
def test_a_wrong_event_is_named_and_none_is_taken(
    keeping: httpx.Client, events_sent: list[Any], field: str
) -> None:
    refused = keeping.post("/v1/events", json={"events": events_sent})
    assert field in fields(problem(refused, 422))


def test_events_beyond_the_queue_are_refused_at_once_and_searches_are_not(
    keeping: httpx.Client, started: list[Galleries]
) -> None:
    replica = started[0][DEFAULT]
    body = {"events": [ubi("0" * 32, "image-1")]}
    held = threading.Event()
    for _ in range(replica._small._max_workers):
        replica._small.submit(held.wait)
    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(keeping.post, "/v1/events", json=body) for _ in range(2)]
        try:
            until = time.monotonic() + 20
            while replica.events.busy < 2:
                assert time.monotonic() < until
                time.sleep(0.01)
            refused = keeping.post("/v1/events", json=body)
            assert "max_queue" in problem(refused, 503)["detail"]
            assert "retry-after" in refused.headers
            assert replica.searches.busy == 0
        finally:
            held.set()
        assert [one.result().status_code for one in waiting] == [202, 202]


def test_a_service_without_events_says_so_and_reading_keys_may_send_them(client: Any) -> None:
    refused = client.post("/v1/events", json={"events": [ubi("0" * 32, "image-1")]})
    assert "--events" in problem(refused, 403)["detail"]
    assert not client.get("/v1/info").json()["events"]
    assert needed_scope("POST", "/v1/events") == "read"


def test_a_hash_alone_is_kept_of_texts_where_that_is_set(
    start_replica: Callable[..., str], service_args: ServeArgs, tmp_path: Path
) -> None:
    file = tmp_path / "gallery.sqlite"
    settings = {"gallery": str(file), "events": True, "events_texts": "hash"}
    url = start_replica(service_args.model_copy(update=settings), "hashed")
    found = httpx.post(f"{url}/v1/search", json={"text": "is for Ann"}, timeout=60).json()
    search = kept(file, lambda one: one.search.query_id == found["query_id"]).search
    assert search.text is None
    assert search.text_hash == hashlib.sha256(b"is for Ann").hexdigest()
    assert not any(b"Ann" in own.read_bytes() for own in tmp_path.glob("gallery.sqlite*"))


@pytest.mark.parametrize(
    ("settings", "about"),
    [
        (
            {"events": True, "gallery": "none"},
            "events needs the gallery's database: got gallery none",
        ),
        ({"explore": 0.1}, "set events"),
        ({"max_events": 11, "events_queue": 10}, "above events_queue: got 11"),
    ],
)
def test_settings_that_keep_nothing_are_refused(settings: dict[str, Any], about: str) -> None:
    with pytest.raises(ValueError, match=about):
        ServeArgs.model_validate(settings)


@pytest.mark.parametrize(
    "more",
    [{"negative_text": "red"}, {"image_weight": 0}, {"boost": {"attribute": "price", "weight": 1}}],
    ids=str,
)
def test_a_search_of_more_than_an_image_and_a_text_makes_no_triplet(
    keeping: httpx.Client, database: Path, more: dict[str, Any]
) -> None:
    body = {"image_id": "image-2", "text": "is blue", "top_k": 5, **more}
    found = keeping.post("/v1/search", json=body).json()
    search = kept(database, asked(found["query_id"])).search
    assert (search.reference, search.text) == (None, "is blue")
