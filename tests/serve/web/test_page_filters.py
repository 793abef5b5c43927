"""Filters on the page beyond one value: several, all but these, and ranges of numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from raycd import bundle
from raycd.gallery.records import Put
from raycd.gallery_db import GalleryDatabase
from tests.serve.pages import NEEDS_CHROMIUM, ask

pytestmark = NEEDS_CHROMIUM


@pytest.fixture(scope="module")
def priced_url(
    start: Callable[..., str], tiny_bundle: Any, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """Start a service of nine images of three colours, at 10 to 90."""
    url = str(tmp_path_factory.mktemp("priced") / "gallery.sqlite")
    encoder = bundle.read_manifest(tiny_bundle.folder).encoder
    feature_D = np.ones(encoder.dim, np.float32)
    path = str(tiny_bundle.folder.parent / "image-0.png")
    puts = [
        Put(
            f"image-{n}",
            feature_D,
            ("dress",),
            # No slider has room between the traces
            {"colour": colour, "price": str(10 * n), "trace": "0" if n == 1 else "1e-120"},
            path,
        )
        for n, colour in enumerate(["red", "green", "blue"] * 3, start=1)
    ]
    with GalleryDatabase.open(url) as gallery_db:
        gallery_db.write(puts, encoder.fingerprint)
    return start("page-filters", gallery=url)


@pytest.fixture
def open_priced(
    opened: Callable[[str], Callable[..., Page]], priced_url: str
) -> Callable[..., Page]:
    return opened(priced_url)


def is_found(page: Page, number: int) -> None:
    expect(page.locator("#status")).to_contain_text(f"of {number} image")


def test_a_range_of_numbers_is_typed_and_kept_in_the_link(
    open_priced: Callable[..., Page],
) -> None:
    page = open_priced()
    ask(page, "is blue")
    page.locator("#filters summary", has_text="price").press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_label("price from", exact=True)).to_be_focused()
    expect(page.get_by_label("price from", exact=True)).to_have_attribute("placeholder", "10")
    page.keyboard.type("30")
    page.keyboard.press("Tab")
    is_found(page, 7)
    page.keyboard.type("50.5")
    page.keyboard.press("Enter")
    is_found(page, 3)
    again = open_priced(page.url[page.url.index("?") :])
    is_found(again, 3)
    expect(again.get_by_label("price to", exact=True)).to_have_value("50.5")
    again.get_by_label("price from", exact=True).fill("")
    again.get_by_label("price from", exact=True).press("Enter")
    is_found(again, 5)


def test_a_range_is_chosen_by_sliders_whose_ends_ask_for_nothing(
    open_priced: Callable[..., Page],
) -> None:
    page = open_priced()
    ask(page, "is blue")
    page.locator("#filters summary", has_text="price").click()
    low, high = (page.get_by_role("slider", name=f"price {end}") for end in ("from", "to"))
    expect(low).to_have_value("10")
    expect(high).to_have_value("90")
    low.fill("35")
    expect(page.get_by_label("price from", exact=True)).to_have_value("35")
    is_found(page, 6)
    high.press("Home")  # not below the other one
    expect(high).to_have_value("35")
    high.press("End")
    expect(page.get_by_label("price to", exact=True)).to_have_value("")
    is_found(page, 6)
    low.press("Home")
    is_found(page, 9)
    page.get_by_label("price to", exact=True).fill("50")
    expect(high).to_have_value("50")
    page.get_by_label("price from", exact=True).fill("1000")
    page.get_by_label("price from", exact=True).press("Enter")
    expect(low).to_have_value("90")
    page.get_by_role("button", name="Clear the filters").click()
    expect(low).to_have_value("10")
    expect(high).to_have_value("90")


def test_attributes_without_numbers_have_no_range(open_priced: Callable[..., Page]) -> None:
    page = open_priced()
    assert page.locator('#filters [data-attribute="colour"] .range').count() == 0


def test_numbers_that_no_slider_can_show_have_their_fields(
    open_priced: Callable[..., Page],
) -> None:
    page = open_priced()
    trace = page.locator('#filters [data-attribute="trace"]')
    assert trace.get_by_role("slider", include_hidden=True).count() == 0
    assert trace.locator(".range input").count() == 2


def test_all_but_some_values_are_found_and_back_and_clearing_bring_the_others(
    open_priced: Callable[..., Page],
) -> None:
    page = open_priced()
    ask(page, "is blue")
    page.locator("#filters summary", has_text="colour").click()
    colours = page.get_by_role("group", name="colour")
    for name in ("red", "blue"):
        colours.get_by_text(name).click()
    is_found(page, 6)
    page.locator('#filters [data-attribute="colour"]').get_by_label("All but these").press("Space")
    is_found(page, 3)
    expect(colours.get_by_role("checkbox", name="red")).to_be_checked()
    page.go_back()
    is_found(page, 6)
    page.locator("#filters summary", has_text="price").click()
    page.get_by_label("price from", exact=True).fill("1000")
    page.get_by_label("price from", exact=True).press("Enter")
    page.get_by_role("button", name="Clear the filters").click()
    is_found(page, 9)
    expect(page.get_by_label("price from", exact=True)).to_have_value("")


@pytest.mark.parametrize(
    "attributes", ["{", "[1]", '{"price":{"gte":"x"},"colour":{"in":[]}}', '{"price":null}']
)
def test_a_link_of_conditions_that_make_no_sense_opens_without_them(
    open_priced: Callable[..., Page], attributes: str
) -> None:
    is_found(open_priced(f"?text=is+blue&attributes={attributes}"), 9)


def test_a_link_may_filter_by_what_no_image_has(open_priced: Callable[..., Page]) -> None:
    page = open_priced('?text=is+blue&attributes={"__proto__":{"gte":1}}')
    expect(page.get_by_text("No image passes these filters")).to_be_visible()


def test_a_link_of_values_and_all_but_others_shows_the_values(
    open_priced: Callable[..., Page],
) -> None:
    asked = '{"colour":{"in":["red","green"],"not":["blue"]}}'
    page = open_priced(f"?text=is+blue&attributes={asked}")
    is_found(page, 6)
    colour = page.locator('#filters [data-attribute="colour"]')
    expect(colour.get_by_role("checkbox", name="red")).to_be_checked()
    expect(colour.get_by_label("All but these")).not_to_be_checked()


def test_what_a_link_filters_by_and_the_form_does_not_offer_stays_when_it_is_asked_again(
    open_priced: Callable[..., Page],
) -> None:
    colour = '"colour":{"in":["red","violet"],"not":["red"]},"price":{"in":["10"],"not":["10"]}'
    others = '"year":{"gte":1900},"size":{"not":["L"]}'
    page = open_priced(f"?text=is+blue&category=hat&attributes={{{colour},{others}}}")
    expect(page.get_by_text("No image passes these filters")).to_be_visible()
    filters = page.locator("#filters")
    for name in ("hat", "violet", "L"):
        expect(filters.get_by_role("checkbox", name=name, exact=True)).to_be_checked()
    expect(filters.get_by_role("checkbox", name="red")).not_to_be_checked()
    expect(page.get_by_label("year from", exact=True)).to_have_value("1900")
    page.fill("#text", "is red")
    page.press("#text", "Enter")
    page.wait_for_url("**text=is+red**")
    link = parse_qs(urlsplit(page.url).query)
    assert (link["category"], link["attribute"]) == (["hat"], ["colour:violet", "price:10"])
    assert json.loads(link["attributes"][0]) == {"year": {"gte": 1900}, "size": {"not": ["L"]}}
    page.get_by_role("button", name="Clear the filters").click()
    is_found(page, 9)


def test_a_value_whose_name_has_a_colon_is_kept_in_the_link(
    open_priced: Callable[..., Page],
) -> None:
    asked = '{"size:eu":{"in":["42"]}}'
    page = open_priced(f"?text=is+blue&attributes={asked}")
    page.fill("#text", "is red")
    page.press("#text", "Enter")
    page.wait_for_url("**text=is+red**")
    link = parse_qs(urlsplit(page.url).query)
    assert "attribute" not in link
    assert json.loads(link["attributes"][0]) == json.loads(asked)
