"""Images beside the reference, on the page in a real Chromium."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.serve.pages import (
    NEEDS_CHROMIUM,
    PHONE,
    answered,
    ask,
    cards,
    found,
    give,
    is_shown,
    photo,
)

pytestmark = NEEDS_CHROMIUM

_DRAG = """([from, to]) => {
    const data = new DataTransfer();
    const all = {bubbles: true, cancelable: true, dataTransfer: data};
    document.querySelector(from).dispatchEvent(new DragEvent("dragstart", all));
    const target = document.querySelector(to);
    for (const kind of ["dragover", "drop"]) target.dispatchEvent(new DragEvent(kind, all));
}"""


def items(page: Page) -> Any:
    return page.locator("#further-list li")


def sent(page: Page, act: Callable[[], object]) -> dict[str, Any]:
    """Return the search that an act sends."""
    with page.expect_request("**/v1/search*") as request:
        act()
    answered(page)
    return dict(json.loads(request.value.post_data or "{}"))


def test_results_become_more_and_less_like_some_of_them_at_once(page: Page) -> None:
    ask(page, "is blue")
    before = found(page)
    ids = [card.get_attribute("data-image") for card in cards(page).all()]
    more = cards(page).nth(2).get_by_role("button", name="More like")
    body = sent(page, more.click)
    assert body["images"] == [{"image_id": ids[2], "weight": 1}]
    less = page.locator(f'.card[data-image="{ids[5]}"]').get_by_role("button", name="Less like")
    body = sent(page, less.click)
    assert body["images"] == [
        {"image_id": ids[2], "weight": 1},
        {"image_id": ids[5], "weight": -0.5},
    ]
    assert body["exclude_reference"] is True
    expect(items(page)).to_have_count(2)
    is_shown(items(page).nth(0).locator("img"))
    assert found(page) != before
    assert not {ids[2], ids[5]} & {one.get_attribute("data-image") for one in cards(page).all()}


def test_an_image_is_turned_round_and_taken_out_by_keyboard(page: Page) -> None:
    ask(page, "is blue")
    sent(page, cards(page).nth(0).get_by_role("button", name="More like").click)
    sign = items(page).get_by_role("button", name="turn it round")
    sign.focus()
    body = sent(page, lambda: page.keyboard.press("Enter"))
    assert body["images"][0]["weight"] == -0.5
    expect(items(page).get_by_role("button", name="less like this")).to_be_focused()
    items(page).get_by_role("button", name="Take").focus()
    body = sent(page, lambda: page.keyboard.press("Space"))
    assert "images" not in body
    expect(items(page)).to_have_count(0)
    expect(page.locator("#further-file")).to_be_focused()


def test_files_and_results_are_dropped_beside_the_reference(page: Page) -> None:
    give(page, "drop", "#results", {"reference.png": photo()})
    page.locator("#further summary").click()
    give(page, "drop", "#further", {"one.png": photo(), "two.png": photo()})
    expect(page.locator("#reference figcaption")).to_have_text("reference.png")
    expect(items(page)).to_have_count(2)
    page.fill("#text", "is blue")
    body = sent(page, lambda: page.press("#text", "Enter"))
    assert [one["weight"] for one in body["images"]] == [1, 1, 1]
    assert all(one["image_base64"].startswith("data:image/png") for one in body["images"])
    image_id = cards(page).nth(1).get_attribute("data-image")
    body = sent(page, lambda: page.evaluate(_DRAG, [".card:nth-child(2) .picture", "#further"]))
    assert body["images"][3] == {"image_id": image_id, "weight": 1}
    image_id = cards(page).first.get_attribute("data-image")
    page.evaluate(_DRAG, [".card .picture", "#reference .zone"])
    expect(page.locator("#reference figcaption")).to_have_text(str(image_id))
    expect(items(page)).to_have_count(3)


def test_a_link_and_a_step_back_have_the_images_of_the_gallery(
    page: Page, open_page: Callable[..., Page]
) -> None:
    ask(page, "is blue")
    sent(page, cards(page).nth(1).get_by_role("button", name="More like").click)
    sent(page, cards(page).nth(2).get_by_role("button", name="Less like").click)
    shown = found(page)
    again = open_page(page.url[page.url.index("?") :])
    answered(again)
    assert found(again) == shown
    expect(items(again)).to_have_count(2)
    page.go_back()
    expect(items(page)).to_have_count(1)


def test_only_as_many_are_taken_as_the_service_takes(page: Page) -> None:
    files = {f"{number}.png": photo() for number in range(9)}
    page.locator("#further summary").click()
    give(page, "drop", "#further", files)
    expect(items(page)).to_have_count(7)
    expect(page.locator("#further-problem")).to_contain_text("No more than 7 images")
    items(page).first.get_by_role("button", name="Take").click()
    expect(page.locator("#further-problem")).to_be_empty()


def test_images_to_be_unlike_alone_are_no_search(page: Page) -> None:
    ask(page, "is blue")
    sent(page, cards(page).nth(1).get_by_role("button", name="Less like").click)
    page.fill("#text", "")
    page.press("#text", "Enter")
    expect(page.get_by_text("Nothing to search with yet")).to_be_visible()


def test_after_a_reload_the_search_goes_on_without_the_files_beside_the_reference(
    page: Page, complaints: list[str]
) -> None:
    page.locator("#further summary").click()
    give(page, "drop", "#further", {"p.png": photo()})
    expect(items(page)).to_have_count(1)
    ask(page, "is blue")
    page.reload()
    answered(page)
    expect(items(page)).to_have_count(0)
    assert len(found(page)) > 1
    assert complaints == []


def test_earlier_steps_of_the_trail_count_where_that_is_wanted(page: Page) -> None:
    page.locator("#options summary").click()
    page.fill("#text", "is blue")
    with page.expect_response("**/v1/search*") as first:
        page.press("#text", "Enter")
    answered(page)
    history = first.value.json()["history"]
    assert history
    cards(page).nth(1).get_by_role("button", name="Use as reference").click()
    page.locator("[name=session]").check()  # also after the step that shall count
    page.fill("#text", "has a belt")
    body = sent(page, lambda: page.press("#text", "Enter"))
    assert (body["reference"], body["session"], body["text"]) == (history, True, "has a belt")
    shown = found(page)
    page.reload()
    answered(page)
    assert found(page) == shown
    body = sent(page, page.locator("[name=session]").uncheck)
    assert "reference" not in body


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_on_a_phone_nothing_of_it_scrolls_sideways(
    open_page: Callable[..., Page], scheme: str
) -> None:
    page = open_page("?text=is+blue&more=image-1&less=image-2", color_scheme=scheme, **PHONE)
    answered(page)
    expect(items(page)).to_have_count(2)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    colours = page.evaluate(
        """() => [...document.querySelectorAll(".sign, .signs button")].map((one) => {
            const style = getComputedStyle(one);
            return [style.color, style.backgroundColor, style.borderColor];
        })"""
    )
    assert all(colour != background for colour, background, _ in colours)
