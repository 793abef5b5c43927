"""The page keeps WCAG 2.2 A and AA, as far as axe-core can tell, in each of its states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]  # it has no types
from playwright.sync_api import Page, expect

from tests.serve.pages import NEEDS_CHROMIUM, PHONE, ask, cards, give, photo

pytestmark = NEEDS_CHROMIUM

WCAG = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}


@pytest.fixture
def open_live(opened: Callable[[str], Callable[..., Page]], live_url: str) -> Callable[..., Page]:
    return opened(live_url)


def check(page: Page, state: str) -> None:
    """Assert that axe-core has nothing to say of what is shown."""
    found = Axe().run(page, options=WCAG)
    assert found.violations_count == 0, f"{state}: {found.generate_report()}"
    assert found.response["passes"], "no rule was tried"


def test_results_keep_wcag_aa(page: Page) -> None:
    ask(page, "is blue")
    check(page, "results")


@pytest.mark.slow  # some ten looks of axe-core
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", [{}, PHONE], ids=["desktop", "phone"])
def test_every_state_keeps_wcag_aa(
    open_live: Callable[..., Page], complaints: list[str], scheme: str, device: dict[str, Any]
) -> None:
    page = open_live(color_scheme=scheme, **device)
    check(page, "start")
    for fold in page.locator("#query summary").all():
        fold.click()
    check(page, "form")
    page.get_by_label("Let earlier steps of the trail count, too").check()
    ask(page, "is blue")
    cards(page).nth(0).hover()
    check(page, "results")
    for name in ("More like", "Less like"):
        cards(page).nth(1).get_by_role("button", name=name).click()
        expect(page.locator("#further-list li").first).to_be_visible()
    cards(page).nth(0).get_by_role("button", name="Use as reference").click()
    check(page, "refining")
    ask(page, "has long sleeves " + "and a belt " * 60)
    expect(page.locator("#warnings")).to_be_visible()
    check(page, "session")
    page.goto(f"{page.url.partition('?')[0]}?text=is+blue&category=none-such")
    expect(page.locator("#message")).to_contain_text("No image passes")
    check(page, "nothing found")
    give(page, "drop", "#results", {"given.png": b"no image"})
    ask_broken(page)
    complaints.clear()  # the browser's own line about status 422
    check(page, "problem")
    page.click("#pick")
    expect(page.locator("#picker .tile").first).to_be_visible()
    check(page, "picker")
    page.locator("#picker .remove.discard").first.click()
    expect(page.locator("#remove")).to_be_visible()
    check(page, "question")
    page.keyboard.press("Escape")
    give(page, "drop", "#picker", {"new.png": photo()})
    expect(page.locator(".addition")).to_have_count(1)
    check(page, "adding")
    page.keyboard.press("Escape")
    page.evaluate("document.querySelector('#key').showModal()")
    check(page, "key")


def ask_broken(page: Page) -> None:
    page.get_by_role("button", name="Search", exact=True).click()
    expect(page.locator("#message h2")).to_have_text("This file is not an image")
