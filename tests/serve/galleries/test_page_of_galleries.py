"""The page of a service with several galleries, in a real Chromium."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from serve import keys
from tests.serve.api.test_guard import bearer
from tests.serve.api.test_keyed_service import within
from tests.serve.pages import NEEDS_CHROMIUM, answered, ask, cards, is_ready
from tests.serve.web.test_page_keys import give_key

pytestmark = NEEDS_CHROMIUM


@pytest.fixture
def open_page(
    opened: Callable[[str], Callable[..., Page]], url: str, complaints: list[str]
) -> Callable[[str, str], Page]:
    """Return what opens the page with a key and a link."""

    def open_page(key: str, link: str = "") -> Page:
        page = opened(url)(link, ready=False)
        give_key(page, key)
        return page

    return open_page


def test_a_gallery_is_chosen_and_links_keep_it(
    open_page: Callable[..., Page], key: str, url: str, complaints: list[str]
) -> None:
    page = open_page(key)
    is_ready(page)
    complaints.clear()  # the browser's own line about status 401
    choice = page.get_by_role("combobox", name="Gallery", exact=True)
    expect(choice).to_have_value("default")
    expect(choice.locator("option:disabled")).to_have_text("absent")
    choice.select_option("hats")
    page.wait_for_url(f"{url}/?gallery=hats")
    is_ready(page)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.removeprefix(f"{url}/")))
    ask(page, "is blue")
    assert page.url == f"{url}/?gallery=hats&text=is+blue"
    assert "v1/galleries/hats/search" in asked
    assert any(one.startswith("v1/galleries/hats/images/") for one in asked)
    cards(page).nth(0).get_by_role("button", name="Use as reference").click()
    page.reload()
    answered(page)
    expect(page.locator("#gallery")).to_have_value("hats")
    page.get_by_role("link", name="raycd").click()
    page.wait_for_url(f"{url}/?gallery=hats")
    is_ready(page)
    page.locator("#gallery").select_option("default")
    page.wait_for_url(f"{url}/")
    is_ready(page)
    assert complaints == []


def test_a_gallery_that_there_is_not_is_said_with_a_way_out(
    open_page: Callable[..., Page], key: str, url: str, complaints: list[str]
) -> None:
    page = open_page(key, "?gallery=gone")
    expect(page.locator("#message")).to_contain_text("There is no such gallery for you")
    complaints.clear()
    page.locator("#gallery").select_option("shoes")
    page.wait_for_url(f"{url}/?gallery=shoes")
    is_ready(page)
    assert complaints == []


def test_a_key_of_one_gallery_opens_that(
    open_page: Callable[..., Page], key_file: Path, url: str, complaints: list[str]
) -> None:
    own = keys.add(key_file, "shoes-alone", "read", ["shoes"])
    with httpx.Client(headers=bearer(own), timeout=60) as client:
        assert within(30, lambda: client.get(f"{url}/v1/galleries").status_code == 200)
    page = open_page(own)
    page.wait_for_url(f"{url}/?gallery=shoes")
    is_ready(page)
    expect(page.locator("#gallery")).to_be_hidden()
    complaints.clear()
    ask(page, "is blue")
    assert complaints == []
