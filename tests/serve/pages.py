"""How tests use the page as people do, and what they read from it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

# The shell is the same browser without its own windows, which cost more than the page.
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
NEEDS_CHROMIUM = pytest.mark.skipif(
    CHROMIUM is None,
    reason="no Chromium here (Debian: apt-get install chromium-headless-shell)",
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


# Playwright's own waits look every half a second after the first quarter of one.
_UNTIL = """selector => new Promise((seen, failed) => {
    const end = performance.now() + 10000;
    const look = () => {
        if (document.querySelector(selector)) seen();
        else if (performance.now() > end) failed(new Error(`no ${selector} within 10 s`));
        else setTimeout(look, 10);
    };
    look();
})"""


def new_context(browser: Browser, **options: Any) -> BrowserContext:
    """Make a context, whose pages share a cache."""
    context = browser.new_context(reduced_motion="reduce", **options)
    context.set_default_timeout(10_000)
    return context


@contextmanager
def opener(
    context: BrowserContext, service_url: str, complaints: list[str]
) -> Iterator[Callable[..., Page]]:
    """Open the page in a tab of its own, with what follows its address, and wait until it is
    ready. With options, the tab is in a context of its own, too.

    `complaints` takes what the browser complains about. Nothing but the service may be asked for
    anything.
    """
    own: list[BrowserContext] = []
    addresses: list[str] = []

    def open_page(link: str = "", ready: bool = True, **options: Any) -> Page:
        if options:
            assert context.browser is not None
            own.append(new_context(context.browser, **options))
        page = (own[-1] if options else context).new_page()
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
    for one in own:
        one.close()
    for page in context.pages:
        page.close()
    assert [
        address for address in addresses if not address.startswith((f"{service_url}/", "blob:"))
    ] == []


def is_ready(page: Page) -> None:
    page.evaluate(_UNTIL, "#query:not([inert])")
    page.evaluate(_UNTIL, "#results:not([aria-busy='true'])")


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
    page.evaluate(_UNTIL, "#results:not([aria-busy='true']) .card")
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
