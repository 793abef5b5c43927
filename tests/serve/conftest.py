"""The service on a real Ray Serve, once for the tests of this folder."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from serve.args import ServeArgs


FOLDER = Path(__file__).parent
RUNNING = pytest.StashKey[bool]()


def a_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def free_port() -> int:
    return a_free_port()


@pytest.fixture(scope="session")
def service_args(tiny_bundle: Any) -> ServeArgs:
    """Return settings without a live gallery, of limits that tests can exceed."""
    from serve.args import ServeArgs

    return ServeArgs(
        bundle=str(tiny_bundle.folder),
        gallery="none",
        threads=1,
        cpus=0,
        max_body_bytes=2_000_000,
        formats=("JPEG", "PNG", "WEBP", "GIF"),
        max_batch=4,
        max_page=50,
    )


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Ray Serve goes with the last test of this folder: its processes would crowd the cluster of
    all others.
    """
    if RUNNING in item.session.stash and (nextitem is None or FOLDER not in nextitem.path.parents):
        from ray import serve as ray_serve

        ray_serve.shutdown()  # type: ignore[no-untyped-call]  # Ray's


@pytest.fixture(scope="session")
def start_service(ray_cluster: Any, request: pytest.FixtureRequest) -> Callable[..., str]:
    """Return what starts an application on the one Ray Serve of these tests, and gives its URL."""
    from ray import serve as ray_serve

    from serve.app import build

    port = a_free_port()
    ray_serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})

    def start(args: ServeArgs, name: str) -> str:
        prefix = "/" if name == "raycd" else f"/{name}"
        ray_serve.run(build(args), name=name, route_prefix=prefix)
        return f"http://127.0.0.1:{port}{prefix}".rstrip("/")

    request.session.stash[RUNNING] = True
    return start


@pytest.fixture(scope="session")
def service_url(start_service: Callable[..., str], service_args: ServeArgs) -> str:
    """Start a service that answers from the tiny bundle."""
    return start_service(service_args, "raycd")


@pytest.fixture(scope="session")
def live_url(
    start_service: Callable[..., str], service_args: ServeArgs, tmp_path_factory: Any
) -> str:
    """Start a service whose gallery changes: tests add images and remove only their own."""
    database = tmp_path_factory.mktemp("live") / "gallery.sqlite"
    return start_service(
        service_args.model_copy(update={"gallery": str(database), "max_import": 600}), "live"
    )


@pytest.fixture(scope="session")
def client(service_url: str) -> Iterator[httpx.Client]:
    """Return a client of it."""
    with httpx.Client(base_url=service_url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium. Of a module: while Playwright runs, no test of this thread can run an event loop
    of its own.
    """
    from playwright.sync_api import sync_playwright

    from tests.serve.pages import CHROMIUM

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """Collect what the browser complains about. A test that provokes it clears it."""
    complaints: list[str] = []
    yield complaints
    assert complaints == []


@pytest.fixture
def open_page(
    browser: Browser, service_url: str, complaints: list[str]
) -> Iterator[Callable[..., Page]]:
    """Return what opens the page of the service (pages.opener)."""
    from tests.serve.pages import opener

    with opener(browser, service_url, complaints) as open_page:
        yield open_page


@pytest.fixture
def page(open_page: Callable[..., Page]) -> Page:
    return open_page()
