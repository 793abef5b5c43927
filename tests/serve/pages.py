"""How tests use the page as people do, and what they read from it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
NEEDS_CHROMIUM = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here (Debian, Ubuntu: apt-get install chromium)"
)
PHONE: Any = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
_GIVE = """([selector, kind, files]) => {
    const data = new DataTransfer();
    for (const [name, bytes] of files)
        data.items.add(new File([new Uint8Array(bytes)], name, {type: "image/png"}));
    const target = document.querySelector(selector);
    const all = {bubbles: true, cancelable: true};
    const given = kind === "drop" ? new DragEvent(kind, {dataTransfer: data, ...all})
        : new ClipboardEvent(kind, {clipboardData: data, ...all});
    target.dispatchEvent(given);
}"""


@contextmanager
def opener(
    browser: Browser, service_url: str, complaints: list[str]
) -> Iterator[Callable[..., Page]]:
    """Opens the page in a context of its own, with what follows its address, and waits until it is
    ready.

    `complaints` takes what the browser complains about. Nothing but the service may be asked for
    anything.
    """
    contexts = []
    addresses: list[str] = []

    def open_page(link: str = "", ready: bool = True, **options: Any) -> Page:
        context = browser.new_context(reduced_motion="reduce", **options)
        contexts.append(context)
        context.set_default_timeout(10_000)
        page = context.new_page()
        page.on("request", lambda request: addresses.append(request.url))
        page.on(
            "console",
            lambda said: (
                complaints.append(said.text) if said.type in ("error", "warning") else None
            ),
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"{service_url}/{link}")
        if ready:
            is_ready(page)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [
        address for address in addresses if not address.startswith((f"{service_url}/", "blob:"))
    ] == []


def is_ready(page: Page) -> None:
    expect(page.locator("#query")).not_to_have_attribute("inert", "")
    expect(page.locator("#results")).not_to_have_attribute("aria-busy", "true")


def photo() -> bytes:
    """Return a PNG that the gallery does not have."""
    buffer = BytesIO()
    Image.radial_gradient("L").resize((64, 64)).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def give(page: Page, kind: str, selector: str, files: dict[str, bytes]) -> None:
    """Drop or paste files, by name, there."""
    page.evaluate(_GIVE, [selector, kind, [[name, list(data)] for name, data in files.items()]])


def ask(page: Page, text: str) -> None:
    """Type, press Enter and wait for the answer."""
    page.fill("#text", text)
    page.press("#text", "Enter")
    answered(page)


def answered(page: Page) -> None:
    expect(page.locator("#results")).not_to_have_attribute("aria-busy", "true")
    expect(cards(page).first).to_be_visible()


def cards(page: Page) -> Locator:
    return page.locator(".card")


def found(page: Page) -> list[str | None]:
    """Return the addresses of the results' pictures, in their order."""
    return [picture.get_attribute("href") for picture in page.locator(".card .picture").all()]


def row(page: Page, image_id: str) -> Locator:
    """Return what the dialog says of the picture that is to have this id."""
    inputs = page.locator(".addition input")
    index = [field.input_value() for field in inputs.all()].index(image_id)
    return page.locator(".addition").nth(index)


def add(page: Page, *names: str) -> None:
    """Drop pictures of these names into the gallery and add them."""
    if page.locator("#picker").is_hidden():
        page.click("#pick")
    give(page, "drop", "#picker", {f"{name}.png": photo() for name in names})
    send(page)
    expect(page.locator("#add")).to_be_hidden()
    expect(page.locator("#picker .tile").first).to_be_focused()


def send(page: Page) -> None:
    page.locator("#add-send").click()


def tile(page: Page, image_id: str) -> Locator:
    return page.locator(f'#picker [data-image="{image_id}"]')


def is_shown(picture: Locator) -> None:
    """Wait until its pixels are there."""
    expect(picture).to_be_visible()
    expect(picture).not_to_have_js_property("naturalWidth", 0)
