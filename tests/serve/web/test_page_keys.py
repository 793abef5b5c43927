"""The page of a service that wants an API key, in a real Chromium."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.serve.pages import (
    NEEDS_CHROMIUM,
    add,
    answered,
    ask,
    give,
    is_ready,
    is_shown,
    photo,
    row,
    send,
    tile,
)

pytestmark = NEEDS_CHROMIUM


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return a key of each scope; `file` has their hashes."""
    from serve import keys

    file = tmp_path_factory.mktemp("keys") / "keys.json"
    return {scope: keys.add(file, scope, scope) for scope in ("read", "write")} | {
        "file": str(file)
    }


@pytest.fixture(scope="module")
def keyed_url(start: Callable[..., str], keys: dict[str, str]) -> str:
    """Start a service that wants a key."""
    return start("page-keyed", api_keys=keys["file"])


@pytest.fixture
def keyed_page(
    opened: Callable[[str], Callable[..., Page]], keyed_url: str, complaints: list[str]
) -> Page:
    """Open its page, which asks for the key."""
    page = opened(keyed_url)(ready=False)
    expect(page.locator("#key")).to_be_visible()
    complaints.clear()  # the browser's own line about status 401
    return page


def give_key(page: Page, key: str) -> None:
    page.get_by_label("API key", exact=True).fill(key)
    page.keyboard.press("Enter")


def test_key_is_asked_for_and_pictures_are_seen_with_it(
    keyed_page: Page, keys: dict[str, str]
) -> None:
    page = keyed_page
    give_key(page, keys["write"])
    is_ready(page)
    is_shown(page.locator("#found .tile img").first)
    add(page, "keyed")
    is_shown(tile(page, "keyed").locator("img"))
    page.keyboard.press("Enter")
    is_shown(page.locator("#preview"))
    ask(page, "is blue")
    is_shown(page.locator(".card img").first)
    for button in ("left", "middle"):
        with page.expect_popup() as popup:
            page.locator(".card .picture").first.click(button=button)
        is_shown(popup.value.locator("img"))
    assert keys["write"] not in page.content()
    assert page.evaluate("JSON.stringify({...localStorage}) + document.cookie") == "{}"

    page.reload()
    answered(page)  # the key is kept for this tab


def test_wrong_key_is_told_and_another_may_be_given(
    keyed_page: Page, keys: dict[str, str], complaints: list[str]
) -> None:
    give_key(keyed_page, "wrong")
    expect(keyed_page.locator("#key-why")).to_contain_text("does not know that key")
    give_key(keyed_page, keys["read"])
    is_ready(keyed_page)
    complaints.clear()


def test_read_key_that_writes_is_told_why_not(
    keyed_page: Page, keys: dict[str, str], complaints: list[str]
) -> None:
    page = keyed_page
    give_key(page, keys["read"])
    is_ready(page)
    page.click("#pick")
    give(page, "drop", "#picker", {"forbidden.png": photo()})
    send(page)
    expect(row(page, "forbidden")).to_contain_text(
        "the API key has the scope read, this needs write"
    )
    page.locator("#add .close").click()
    page.locator("#picker .tile").first.hover()
    page.locator("#picker .discard").first.click()
    page.click("#remove-go")
    expect(page.locator("#remove-problem")).to_contain_text("this needs write")
    complaints.clear()


def test_key_is_forgotten_when_asked(
    keyed_page: Page, keys: dict[str, str], complaints: list[str]
) -> None:
    give_key(keyed_page, keys["read"])
    is_ready(keyed_page)
    keyed_page.get_by_role("button", name="Forget the API key").click()
    expect(keyed_page.locator("#key")).to_be_visible()
    assert keyed_page.evaluate("sessionStorage.length") == 0
    keyed_page.get_by_role("button", name="Not now").click()
    expect(keyed_page.locator("#message")).to_contain_text("The service wants an API key")
    complaints.clear()
