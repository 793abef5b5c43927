"""The page tells a service that keeps events what was done with results, and waits for nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Request, expect

from raycd.gallery_db import GalleryDatabase, events
from tests.serve.pages import NEEDS_CHROMIUM, ask, cards

pytestmark = NEEDS_CHROMIUM

MOST = 5  # events of one request


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page-events") / "gallery.sqlite"


@pytest.fixture(scope="module")
def keeping_url(start: Callable[..., str], database: Path) -> str:
    return start("page-events", gallery=str(database), events=True, max_events=MOST)


@pytest.fixture
def keeping(opened: Callable[[str], Callable[..., Page]], keeping_url: str) -> Callable[..., Page]:
    return opened(keeping_url)


def is_events(request: Request) -> bool:
    return request.url.endswith("/v1/events")


def told(page: Page, act: Callable[[], object]) -> list[tuple[str, str, str]]:
    """Return the events that an act sends: query_id, action, image."""
    with page.expect_request(is_events) as request:
        act()
    response = request.value.response()
    assert response is not None
    assert response.status == 202
    return _events(request.value)


def _events(request: Request) -> list[tuple[str, str, str]]:
    return [
        (one["query_id"], one["action_name"], one["event_attributes"]["object"]["object_id"])
        for one in json.loads(request.post_data or "")["events"]
    ]


def test_what_was_shown_clicked_and_dismissed_is_told_by_the_answers_id(
    keeping: Callable[..., Page], database: Path
) -> None:
    page = keeping()
    sent: list[Request] = []
    page.on("request", lambda request: sent.append(request) if is_events(request) else None)
    with page.expect_response("**/v1/search*") as answer:
        ask(page, "is blue")
    query_id, results = (answer.value.json()[name] for name in ("query_id", "results"))
    ids = [one["image_id"] for one in results]

    def opened() -> None:
        with page.expect_popup() as tab:
            cards(page).nth(1).locator(".picture").click()
        tab.value.close()

    assert told(page, opened) == [(query_id, "click", ids[1])]
    use = cards(page).nth(0).get_by_role("button", name="Use as reference")
    assert told(page, use.click) == [(query_id, "click", ids[0])]
    less = cards(page).nth(2).get_by_role("button", name="Less like")
    assert told(page, less.click) == [(query_id, "dismiss", ids[2])]
    impressions = [one for request in sent for one in _events(request) if one[1] == "impression"]
    assert impressions == [(query_id, "impression", image_id) for image_id in ids]
    assert max(len(_events(request)) for request in sent) == MOST

    def kept() -> set[tuple[str, str, str]]:
        with GalleryDatabase.open(str(database), migrate=False) as gallery_db:
            return {(one.query_id, one.action, one.image_id) for one in events.events(gallery_db)}

    wanted = {*impressions, (query_id, "click", ids[1]), (query_id, "dismiss", ids[2])}
    for _ in range(100):
        if wanted <= kept():
            return
        page.wait_for_timeout(100)
    raise AssertionError("they were never written")


def test_a_service_that_does_not_take_events_delays_no_search(keeping: Callable[..., Page]) -> None:
    page = keeping()
    page.route("**/v1/events", lambda route: None)  # never answered
    for text in ("is blue", "is red", "is long"):
        ask(page, text)
        cards(page).nth(0).get_by_role("button", name="More like").click()
    expect(page.locator("#message")).to_be_empty()
    page.unroute_all(behavior="ignoreErrors")


def test_where_events_are_not_kept_nothing_is_told(page: Page) -> None:
    asked: list[Any] = []
    page.on("request", lambda request: asked.append(request) if is_events(request) else None)
    ask(page, "is blue")
    cards(page).nth(0).get_by_role("button", name="Less like").click()
    ask(page, "is red")
    assert asked == []
