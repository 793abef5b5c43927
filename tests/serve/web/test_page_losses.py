"""What the page keeps: words, results and the trail, whatever goes wrong or is pressed."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import Page, expect

from tests.serve.pages import NEEDS_CHROMIUM, answered, ask, cards, found, photo

pytestmark = NEEDS_CHROMIUM


def upload(page: Page, data: bytes, name: str = "photo.png") -> None:
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": data})


def test_link_of_an_upload_asks_for_the_image_and_then_goes_on(
    open_page: Callable[..., Page],
) -> None:
    page = open_page("?upload=mine.png&text=is+blue")
    expect(page.locator("#message")).to_contain_text("This search needs your image again")
    upload(page, photo(), "mine.png")
    answered(page)


def test_words_of_such_a_link_are_searched_with_alone(open_page: Callable[..., Page]) -> None:
    page = open_page("?upload=mine.png&text=is+blue")
    page.fill("#text", "is red")
    page.get_by_role("button", name="Search", exact=True).click()
    expect(page.locator("#message")).to_contain_text("This search needs your image again")
    page.get_by_role("button", name="Go on without it").click()
    answered(page)
    assert page.url.endswith("?text=is+red")


def test_the_skip_link_moves_the_focus_and_nothing_else(page: Page) -> None:
    upload(page, photo())
    ask(page, "is blue")
    shown, address = found(page), page.url
    page.fill("#text", "half a sentence")
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#results")).to_be_focused()
    assert (found(page), page.url) == (shown, address)
    assert page.input_value("#text") == "half a sentence"


def test_results_stay_where_more_of_them_cannot_be_had(page: Page, complaints: list[str]) -> None:
    page.locator("#options summary").click()
    page.select_option("#top_k", "6")
    ask(page, "is blue")
    page.route("**/v1/search*", lambda route: route.abort())
    page.get_by_role("button", name="More results").click()
    expect(page.locator("#message")).to_contain_text("The service cannot be reached")
    expect(cards(page)).to_have_count(6)
    page.unroute("**/v1/search*")
    page.get_by_role("button", name="Try again").click()
    expect(cards(page)).to_have_count(12)
    expect(page.locator("#message")).to_be_empty()
    complaints.clear()
