"""The page in a real Chromium, over a real service."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx
import pytest
from playwright.sync_api import Error, Page, Route, expect

from tests.serve.pages import NEEDS_CHROMIUM, PHONE, answered, ask, cards, found, give, photo

pytestmark = NEEDS_CHROMIUM


@pytest.fixture(scope="module")
def info(service_url: str) -> dict[str, Any]:
    """Return what the service says of itself."""
    return dict(httpx.get(f"{service_url}/v1/info").raise_for_status().json())


def upload(page: Page, data: bytes, name: str = "photo.png", kind: str = "image/png") -> None:
    page.set_input_files("#file", {"name": name, "mimeType": kind, "buffer": data})


def pick(page: Page, index: int = 0) -> str:
    """Pick an image from the gallery; return its id."""
    page.click("#pick")
    page.locator("#picker .tile").nth(index).click()
    return page.locator("#reference figcaption").inner_text()


def test_chosen_file_is_searched_with(page: Page) -> None:
    upload(page, photo())
    expect(page.locator("#preview")).to_be_visible()
    ask(page, "is blue")
    assert "upload=photo.png&text=is+blue" in page.url


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_dropped_or_pasted_image_is_searched_with(page: Page, kind: str) -> None:
    give(page, kind, "#results", {"given.png": photo()})
    expect(page.locator("#reference figcaption")).to_have_text("given.png")
    page.get_by_role("button", name="Search", exact=True).click()
    answered(page)


def test_image_of_the_gallery_is_searched_with_and_stays_out_of_the_results(page: Page) -> None:
    image_id = pick(page)
    ask(page, "is blue")
    assert f"image_id={image_id}" in page.url
    assert f"v1/images/{image_id}?size=original" not in found(page)


def test_gallery_shows_the_chosen_category_only(page: Page, info: dict[str, Any]) -> None:
    category, number = next(iter(info["categories"].items()))
    page.click("#pick")
    page.select_option("#picker-category", category)
    expect(page.locator("#picker-range")).to_contain_text(f"of {number:,}")
    page.keyboard.press("Escape")
    expect(page.locator("#picker")).to_be_hidden()


def test_example_is_asked_at_a_click(page: Page, info: dict[str, Any]) -> None:
    pick(page)
    page.locator("#examples button").first.click()
    answered(page)
    expect(page.locator("#text")).to_have_value(info["example_texts"][0])


def test_category_filters_the_results(page: Page, info: dict[str, Any]) -> None:
    category, number = next(iter(info["categories"].items()))
    ask(page, "is blue")
    page.locator("#filters label", has_text=category).first.click()
    expect(page.locator("#status")).to_contain_text(f"of {number:,} image")
    assert f"category={category}" in page.url


def test_attribute_filters_the_results(
    page: Page, open_page: Callable[..., Page], info: dict[str, Any]
) -> None:
    if not info["attributes"]:
        pytest.skip("the images of this gallery have no attributes")
    name, values = next(iter(info["attributes"].items()))
    value, number = next(iter(values.items()))
    ask(page, "is blue")
    page.locator("#filters summary", has_text=name).click()
    page.locator("#filters details label", has_text=value).first.click()
    expect(page.locator("#status")).to_contain_text(f"of {number:,} image")
    again = open_page(page.url[page.url.index("?") :])
    expect(again.get_by_role("checkbox", name=value).first).to_be_checked()
    assert found(again) == found(page)


def test_filter_that_nothing_passes_can_be_cleared(open_page: Callable[..., Page]) -> None:
    page = open_page("?text=is+blue&category=none-such")
    expect(page.get_by_text("No image passes these filters")).to_be_visible()
    page.get_by_role("button", name="Clear the filters").click()
    answered(page)


def test_result_becomes_the_reference_and_the_trail_leads_back(page: Page) -> None:
    first = pick(page)
    ask(page, "is blue")
    before = found(page)
    cards(page).nth(1).get_by_role("button", name="Use as reference").click()
    expect(page.locator("#text")).to_be_focused()
    ask(page, "has long sleeves")
    steps = page.locator("#trail button")
    expect(steps).to_have_text(["is blue", "has long sleeves"])
    expect(steps.nth(1)).to_have_attribute("aria-current", "step")

    steps.nth(0).click()
    expect(page.locator("#reference figcaption")).to_have_text(first)
    answered(page)
    assert found(page) == before
    page.go_back()
    expect(page.locator("#text")).to_have_value("has long sleeves")


def test_link_reopens_the_same_results(page: Page, open_page: Callable[..., Page]) -> None:
    pick(page, 2)
    page.locator("#options summary").click()
    page.fill("#negative_text", "stripes")
    page.fill("#image_weight", "0.5")
    page.locator("#filters input").first.check(force=True)
    ask(page, "is red & has a belt")
    again = open_page(page.url[page.url.index("?") :])
    answered(again)
    assert found(again) == found(page)
    expect(again.locator("#negative_text")).to_have_value("stripes")


def test_explanation_shows_on_hover_and_on_focus(page: Page) -> None:
    pick(page)
    ask(page, "is blue")
    why = page.locator(".why")
    page.mouse.move(0, 0)
    expect(why.nth(1)).to_have_css("opacity", "0")
    cards(page).nth(1).hover()
    expect(why.nth(1)).to_have_css("opacity", "1")
    page.locator(".use").nth(2).focus()
    expect(why.nth(2)).to_have_css("opacity", "1")
    expect(why.nth(2)).to_contain_text("image alone")


def test_more_results_follow_the_first(page: Page) -> None:
    page.locator("#options summary").click()
    page.select_option("#top_k", "6")
    ask(page, "is blue")
    expect(cards(page)).to_have_count(6)
    page.get_by_role("button", name="More results").click()
    expect(cards(page)).to_have_count(12)
    assert len(set(found(page))) == 12


def test_keyboard_alone_searches_and_refines(page: Page) -> None:
    def tab_to(selector: str) -> None:
        for _ in range(100):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"the Tab key does not reach {selector}")

    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    tab_to("#text")
    page.keyboard.type("is blue")
    page.keyboard.press("Enter")
    answered(page)
    tab_to(".use")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".use").nth(1)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#text")).to_be_focused()
    expect(page.locator("#trail .pending")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_never_scrolls_sideways(open_page: Callable[..., Page], scheme: str) -> None:
    page = open_page(color_scheme=scheme, **PHONE)
    width = "document.documentElement.scrollWidth"
    assert page.evaluate(width) == 360
    page.locator("#options summary").click()
    pick(page)
    ask(page, "has " + "very" * 60 + " long sleeves")
    cards(page).first.get_by_role("button", name="Use as reference").click()
    assert page.evaluate(width) == 360


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"not an image", "This file is not an image"), (photo()[:200], "This image is damaged")],
)
def test_broken_image_is_told_in_clear_words(
    page: Page, complaints: list[str], data: bytes, words: str
) -> None:
    upload(page, data)
    page.fill("#text", "is blue")
    page.press("#text", "Enter")
    expect(page.locator("#message h2")).to_have_text(words)
    complaints.clear()  # the browser's own line about status 422


def test_an_image_at_an_address_that_is_too_large_is_told_by_its_bytes(
    page: Page, complaints: list[str]
) -> None:
    def refuse(route: Route) -> None:
        body = {
            "status": 422,
            "reason": "too_large",
            "detail": "image_url: the image is larger than the limit",
        }
        route.fulfill(status=422, content_type="application/problem+json", body=json.dumps(body))

    page.route("**/v1/search", refuse)
    page.fill("#text", "is blue")
    page.press("#text", "Enter")
    expect(page.locator("#message h2")).to_have_text("The image at this address is too large")
    expect(page.locator("#message")).to_contain_text("A file may have at most 2 MB.")
    complaints.clear()  # the browser's own line about status 422


def test_large_file_is_refused_before_it_is_sent(page: Page, info: dict[str, Any]) -> None:
    upload(page, bytes(info["limits"]["body_bytes"]))
    expect(page.locator("#reference-problem")).to_contain_text("too large")
    expect(page.locator("#reference figure")).to_be_hidden()


def test_unknown_image_of_a_link_is_told(
    open_page: Callable[..., Page], complaints: list[str]
) -> None:
    page = open_page("?image_id=none-such&text=is+blue")
    expect(page.locator("#message")).to_contain_text("not in the gallery")
    expect(page.locator("#preview")).to_be_hidden()
    complaints.clear()  # the browser's own lines about status 404, of the search and of the picture


def test_busy_service_says_when_to_try_again(page: Page, complaints: list[str]) -> None:
    def busy(route: Route) -> None:
        body = json.dumps(
            {"title": "Service Unavailable", "status": 503, "detail": "the queue is full"}
        )
        route.fulfill(
            status=503,
            headers={"Retry-After": "1"},
            content_type="application/problem+json",
            body=body,
        )

    page.route("**/v1/search", busy)
    page.fill("#text", "is blue")
    page.press("#text", "Enter")
    expect(page.locator("#message")).to_contain_text("The service is busy")
    expect(page.get_by_role("button", name="Try again in 1 s")).to_be_disabled()
    page.unroute("**/v1/search")
    page.get_by_role("button", name="Try again", exact=True).click()
    answered(page)
    complaints.clear()


def test_unreachable_service_is_told_and_tried_again(page: Page, complaints: list[str]) -> None:
    # Playwright's "offline" comes to a busy machine's network a little later
    page.route("**/v1/search*", lambda route: route.abort())
    page.fill("#text", "is blue")
    page.press("#text", "Enter")
    expect(page.locator("#message")).to_contain_text("The service cannot be reached")
    page.unroute("**/v1/search*")
    page.get_by_role("button", name="Try again").click()
    answered(page)
    complaints.clear()


def test_older_answer_never_replaces_a_newer(page: Page) -> None:
    held: list[Route] = []

    def hold_first(route: Route) -> None:
        if "first" in (route.request.post_data or ""):
            held.append(route)
        else:
            route.continue_()

    page.route("**/v1/search", hold_first)
    page.fill("#text", "first")
    page.press("#text", "Enter")
    while not held:  # the first is on its way before the second is asked
        page.wait_for_timeout(10)
    ask(page, "second")
    newer = found(page)
    with suppress(Error):  # the page has given it up already
        held[0].continue_()
    page.wait_for_timeout(300)
    assert found(page) == newer
    assert "text=second" in page.url


def test_markup_in_texts_and_links_stays_text(open_page: Callable[..., Page]) -> None:
    attack = "<img src=x onerror=window.hit=1>"
    page = open_page()
    pick(page)
    ask(page, attack)
    cards(page).first.get_by_role("button", name="Use as reference").click()
    ask(page, attack)
    expect(page.locator("#trail button").first).to_have_text(attack)
    again = open_page(f"?text={attack}&upload={attack}")
    expect(again.locator("#message")).to_contain_text(attack)
    for one in (page, again):
        assert one.evaluate("window.hit") is None
        expect(one.locator("img[src=x]")).to_have_count(0)


def test_nothing_asked_is_told(page: Page) -> None:
    page.get_by_role("button", name="Search", exact=True).click()
    expect(page.locator("#message")).to_contain_text("Nothing to search with yet")


def test_words_come_from_the_bundle_and_filters_before_examples(
    page: Page, info: dict[str, Any]
) -> None:
    expect(page.locator("#text")).to_have_attribute("placeholder", info["example_texts"][0])
    filters, examples = (
        page.locator(selector).bounding_box() for selector in ("#filters", "#examples")
    )
    assert filters is not None
    assert examples is not None
    assert filters["y"] < examples["y"]


def test_tile_tells_the_relative_score_and_the_explanation_the_cosines(page: Page) -> None:
    with page.expect_response("**/v1/search*") as answer:
        ask(page, "is blue")
    best = answer.value.json()["results"][0]
    expect(cards(page).first.locator(".score")).to_have_text(f"{best['relative_score']:+.1f} σ")
    expect(cards(page).first.locator(".why")).to_contain_text(f"{best['score']:.2f}")


def test_the_only_category_is_left_out_of_labels(
    page: Page, open_page: Callable[..., Page]
) -> None:
    def of_one_category(route: Route) -> None:
        answer = route.fetch()
        body = answer.json()
        for image in [*body.get("items", []), *body.get("results", [])]:
            image["category"] = "all"
        if "categories" in body:
            body["categories"] = {"all": len(body["categories"])}
        route.fulfill(response=answer, json=body)

    page = open_page("", ready=False)
    page.route(
        "**/v1/**",
        lambda route: (
            route.continue_() if "/images/" in route.request.url else of_one_category(route)
        ),
    )
    page.reload()
    expect(page.locator("#filters")).not_to_contain_text("Only in")
    ask(page, "is blue")
    for label in page.locator(".what").all():
        assert "all" not in label.inner_text().split(", ")
