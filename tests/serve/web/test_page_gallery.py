"""Adding to the gallery and removing from it on the page, in a real Chromium."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from playwright.sync_api import Locator, Page, Route, expect

from tests.serve.pages import (
    NEEDS_CHROMIUM,
    PHONE,
    add,
    ask,
    cards,
    found,
    give,
    is_shown,
    photo,
    row,
    send,
    tile,
)

pytestmark = NEEDS_CHROMIUM


@pytest.fixture(scope="module")
def service_url(start: Callable[..., str]) -> str:
    """Start a service whose gallery is live."""
    return start("page-gallery")


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_dropped_or_pasted_picture_is_shown_at_once_and_found(
    page: Page, service_url: str, kind: str
) -> None:
    image_id = f"{kind} 17"
    page.click("#pick")
    give(page, kind, "#picker", {f"{image_id}.png": photo()})
    page.get_by_label("Category", exact=True).last.fill("cape")
    page.get_by_role("button", name="Add an attribute").click()
    page.get_by_label("Attribute", exact=True).fill("colour")
    page.get_by_label("Value", exact=True).fill("grey")
    page.get_by_role("button", name="Add 1 picture").click()
    expect(page.locator("#picker-news")).to_have_text(f"Added {image_id}.")
    expect(page.locator("#picker .tile").first).to_be_focused()
    is_shown(tile(page, image_id).locator("img"))
    page.keyboard.press("Escape")

    expect(page.locator("#filters label", has_text="cape")).to_be_visible()
    ask(page, "is blue")
    is_shown(page.locator(f'.card[data-image="{image_id}"] img'))
    item = httpx.get(f"{service_url}/v1/gallery", params={"newest": True, "limit": 1}).json()[
        "items"
    ][0]
    assert (item["image_id"], item["category"], item["attributes"]) == (
        image_id,
        "cape",
        {"colour": "grey"},
    )


def test_added_picture_becomes_the_reference(page: Page) -> None:
    add(page, "next")
    page.keyboard.press("Enter")
    expect(page.locator("#reference figcaption")).to_have_text("next")
    is_shown(page.locator("#preview"))
    ask(page, "is blue")
    assert "image_id=next" in page.url


def test_ids_come_from_the_files_names_and_differ_from_all_others(page: Page) -> None:
    add(page, "same")
    page.get_by_role("button", name="Add to the gallery").click()
    for _ in range(2):
        give(page, "drop", "#add", {"same.png": photo()})
    inputs = page.locator(".addition input")
    expect(inputs.nth(0)).to_have_value("same-2")
    expect(inputs.nth(1)).to_have_value("same-3")
    inputs.nth(1).fill("same-2")
    send(page)
    assert (
        inputs.nth(1).evaluate("input => input.validationMessage")
        == "Another of these pictures has this id."
    )
    expect(page.locator("#add")).to_be_visible()


def test_one_broken_file_stops_no_other(page: Page, complaints: list[str]) -> None:
    page.click("#pick")
    files = {
        "good.png": photo(),
        "broken.png": b"not an image",
        "empty.png": b"",
        "fine.png": photo(),
    }
    give(page, "drop", "#picker", files)
    page.get_by_role("button", name="Add 3 pictures").click()
    expect(page.locator("#add-state")).to_have_text("2 of 4 pictures added")
    for image_id in ("good", "fine"):
        expect(row(page, image_id)).to_contain_text("Added.")
    expect(row(page, "broken")).to_contain_text("This file is not an image")
    expect(row(page, "empty")).to_contain_text("This file is empty")
    row(page, "good").get_by_role("button", name="Use as reference").click()
    expect(page.locator("#reference figcaption")).to_have_text("good")
    complaints.clear()  # the browser's own line about status 422


def test_image_is_replaced_only_after_a_question(page: Page, service_url: str) -> None:
    before = httpx.get(f"{service_url}/v1/images/image-3").content
    page.click("#pick")
    give(page, "drop", "#picker", {"other.png": photo()})
    page.get_by_label("Id of other.png").fill("image-3")
    send(page)
    expect(row(page, "image-3")).to_contain_text("The gallery has an image of this id")
    assert httpx.get(f"{service_url}/v1/images/image-3").content == before
    page.get_by_role("button", name="Replace it").click()
    expect(page.locator("#add")).to_be_hidden()
    expect(tile(page, "image-3").locator("img")).to_have_js_property(
        "naturalWidth", 64
    )  # the one before had 40


def test_a_picture_is_sent_once_however_often_add_is_pressed(page: Page) -> None:
    held, puts = list[Route](), list[str]()
    page.on("request", lambda sent: puts.append(sent.url) if sent.method == "PUT" else None)

    def hold_first(route: Route) -> None:
        if held:
            route.continue_()
        held.append(route)

    page.route("**/v1/search/batch*", hold_first)
    page.click("#pick")
    give(page, "drop", "#picker", {"once.png": photo()})
    page.get_by_role("button", name="Add 1 picture").click()
    expect(page.get_by_role("button", name="Adding…")).to_be_disabled()  # before its id is known
    held[0].continue_()
    expect(tile(page, "once")).to_be_visible()
    assert len(puts) == 1


def test_busy_service_lets_a_picture_be_sent_again(page: Page, complaints: list[str]) -> None:
    def busy(route: Route) -> None:
        body = json.dumps(
            {"status": 503, "detail": "the gallery's database is busy: nothing was changed"}
        )
        route.fulfill(
            status=503,
            headers={"Retry-After": "1"},
            content_type="application/problem+json",
            body=body,
        )

    page.route("**/v1/gallery/patient", busy)
    page.click("#pick")
    give(page, "drop", "#picker", {"patient.png": photo()})
    send(page)
    expect(row(page, "patient")).to_contain_text("nothing was changed")
    expect(page.get_by_role("button", name="Try again in 1 s")).to_be_disabled()
    page.unroute("**/v1/gallery/patient")
    page.get_by_role("button", name="Try again", exact=True).click()
    expect(tile(page, "patient")).to_be_visible()
    complaints.clear()


def test_removed_image_is_gone(page: Page, service_url: str) -> None:
    add(page, "doomed", "kept")
    tile(page, "doomed").hover()
    page.get_by_role("button", name="Remove doomed from the gallery").click()
    page.locator("#remove").get_by_role("button", name="Remove", exact=True).click()
    expect(page.locator("#picker-news")).to_have_text("Removed doomed.")
    expect(tile(page, "doomed")).to_have_count(0)
    expect(tile(page, "kept")).to_be_visible()
    page.keyboard.press("Escape")
    ask(page, "is blue")
    addresses = [address for address in found(page) if address]
    assert addresses
    assert not any("doomed" in address for address in addresses)
    assert httpx.get(f"{service_url}/v1/images/doomed").status_code == 404


def test_removal_of_the_reference_is_said(page: Page) -> None:
    add(page, "shown")
    tile(page, "shown").locator(".tile").click()
    page.click("#pick")
    tile(page, "shown").hover()
    tile(page, "shown").locator(".discard").click()
    expect(page.locator("#remove")).to_contain_text("It is your reference image")
    page.click("#remove-go")
    expect(page.locator("#picker-news")).to_contain_text(
        "It was the reference image: choose another"
    )
    page.keyboard.press("Escape")
    expect(page.locator("#reference figure")).to_be_hidden()


def test_result_is_removed_from_the_gallery(page: Page, service_url: str) -> None:
    add(page, "unwanted")
    page.keyboard.press("Escape")
    ask(page, "is blue")
    number = cards(page).count()
    card = page.locator('.card[data-image="unwanted"]')
    card.hover()
    card.locator(".discard").click()
    page.click("#remove-go")
    expect(page.locator("#status")).to_have_text("Removed unwanted.")
    expect(cards(page)).to_have_count(number - 1)
    ask(page, "is red")
    expect(card).to_have_count(0)
    assert httpx.get(f"{service_url}/v1/images/unwanted").status_code == 404


def test_keyboard_alone_removes_an_image_or_keeps_it(page: Page) -> None:
    add(page, "typed")
    page.keyboard.press("Tab")
    expect(tile(page, "typed").locator(".discard")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Keep it")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#remove")).to_be_hidden()
    expect(tile(page, "typed").locator(".discard")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(tile(page, "typed")).to_have_count(0)
    expect(page.locator("#picker .tile").first).to_be_focused()


def test_markup_in_ids_and_labels_stays_text(page: Page) -> None:
    attack = "<img src=x onerror=window.hit=1>"
    page.click("#pick")
    give(page, "drop", "#picker", {f"{attack}.png": photo()})
    page.get_by_label("Category", exact=True).last.fill(attack)
    send(page)
    expect(page.locator("#picker-news")).to_have_text(f"Added {attack}.")
    page.locator("#picker .fresh").hover()
    page.locator("#picker .fresh .discard").click()
    expect(page.locator("#remove-id")).to_have_text(attack)
    page.click("#remove-go")
    expect(page.locator("#picker-news")).to_have_text(f"Removed {attack}.")
    assert page.evaluate("window.hit") is None
    expect(page.locator("img[src=x]")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_never_scrolls_sideways(open_page: Callable[..., Page], scheme: str) -> None:
    page = open_page(color_scheme=scheme, **PHONE)
    page.click("#pick")
    give(page, "drop", "#picker", {f"{scheme}{'long' * 30}.png": photo()})
    page.get_by_role("button", name="Add an attribute").click()
    sideways = "node => node.scrollWidth - node.clientWidth"
    for selector in ("html", "#picker", "#add", "#add-form"):
        assert page.locator(selector).evaluate(sideways) == 0, selector
    page.get_by_role("button", name="Remove this attribute").click()
    send(page)
    page.locator("#picker .discard").first.click()
    assert page.locator("#remove").evaluate(sideways) == 0


def test_gallery_that_does_not_change_has_no_buttons_for_it(
    opened: Callable[[str], Callable[..., Page]], start: Callable[..., str]
) -> None:
    page = opened(start("page-still", gallery="none"))()
    page.click("#pick")
    expect(page.locator("#picker .tile").first).to_be_visible()
    expect(page.locator("#picker-add")).to_be_hidden()
    give(page, "drop", "#picker", {"given.png": photo()})
    expect(page.locator("#add")).to_be_hidden()
    page.keyboard.press("Escape")
    expect(page.locator("#reference figcaption")).to_have_text("given.png")
    ask(page, "is blue")
    expect(page.locator(".discard")).to_have_count(0)


def test_on_a_phone_no_button_lies_on_a_picture_and_the_score_stands_once(
    open_page: Callable[..., Page],
) -> None:
    def is_below(cell: Locator) -> bool:
        picture, bin_ = cell.locator("img").bounding_box(), cell.locator(".discard").bounding_box()
        assert picture is not None
        assert bin_ is not None
        return bin_["y"] >= picture["y"] + picture["height"]

    page = open_page(**PHONE)
    ask(page, "is blue")
    assert is_below(cards(page).first)
    assert cards(page).first.inner_text().count("σ") == 1
    page.click("#pick")
    assert is_below(page.locator("#picker .tiles > li").first)


# Of what every object of JavaScript has.
NAMES = ("constructor", "__proto__", "toString", "hasOwnProperty")


def test_attributes_and_categories_may_be_named_as_what_every_object_has(
    open_page: Callable[..., Page], service_url: str, tiny_bundle: Any
) -> None:
    attributes = {name: f"value of {name}" for name in NAMES}
    form = {"category": "constructor", "attributes": json.dumps(attributes)}
    answer = httpx.put(f"{service_url}/v1/gallery/named", data=form, files={"image": photo()})
    assert answer.status_code == 201
    version = answer.json()["version"]
    httpx.get(f"{service_url}/v1/gallery", params={"min_version": version})
    page = open_page()
    ask(page, "is blue")
    for name in NAMES:
        page.locator("#filters summary", has_text=name).click()
        page.locator("#filters details label", has_text=f"value of {name}").click()
        expect(page.locator("#status")).to_contain_text("of 1 image")
    again = open_page(page.url[page.url.index("?") :])
    for name in NAMES:
        expect(again.get_by_role("checkbox", name=f"value of {name}")).to_be_checked()
    assert found(again) == found(page) != []
    again.click("#pick")
    again.select_option("#picker-category", "constructor")
    expect(tile(again, "named")).to_be_visible()
    give(again, "drop", "#picker", {"like it.png": photo()})
    again.get_by_role("button", name="Add an attribute").click()
    again.get_by_label("Attribute", exact=True).fill("__proto__")
    again.get_by_label("Value", exact=True).fill("again")
    again.get_by_role("button", name="Add 1 picture").click()
    expect(again.locator("#picker-news")).to_have_text("Added like it.")
    newest = {"newest": True, "limit": 1, "min_version": version + 1}
    [item] = httpx.get(f"{service_url}/v1/gallery", params=newest).json()["items"]
    assert item["attributes"] == {"__proto__": "again"}
