"""The service on a real Ray Serve, once for the tests of this folder."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from serve.start import local

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

    from serve.args import ServeArgs
    from serve.galleries import Galleries


FOLDER = Path(__file__).parent
RUNNING = pytest.StashKey[bool]()


@pytest.fixture
def free_port() -> int:
    return local.free_port()


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
        max_page=40,  # fewer than a page has that names no limit
    )


@pytest.hookimpl(trylast=True)  # after pytest's own: the last test's page still asks the service
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

    port = local.free_port()
    ray_serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})

    def start(args: ServeArgs, name: str) -> str:
        prefix = "/" if name == "raycd" else f"/{name}"
        ray_serve.run(build(args), name=name, route_prefix=prefix)
        return f"http://127.0.0.1:{port}{prefix}".rstrip("/")

    request.session.stash[RUNNING] = True
    return start


@pytest.fixture(scope="session")
def other_bundle(tiny_bundle: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the same images with another encoder."""
    import torch

    from raycd import bundle

    loaded = bundle.load(tiny_bundle.folder)
    torch.manual_seed(1)
    with torch.inference_mode():
        visual = loaded.encoder.clip.visual
        assert isinstance(visual, torch.nn.Module)
        for parameter in visual.parameters():
            parameter.add_(0.1 * parameter.std(correction=0) * torch.randn_like(parameter))
        pixels = torch.stack([loaded.encoder.preprocess(image) for image in tiny_bundle.images])
        features_GD = loaded.encoder.encode_images(pixels).numpy()
    table = bundle.read_gallery(tiny_bundle.folder)
    ids, categories, paths = (
        table[name].to_pylist() for name in ("image_id", "categories", "path")
    )
    attributes = [dict(pairs) for pairs in table["attributes"].to_pylist()]
    gallery = bundle.gallery_table(
        ids, categories, paths, features_GD, loaded.encoder.fingerprint(), attributes=attributes
    )
    folder = tmp_path_factory.mktemp("other") / "bundle"
    bundle.write(
        folder, loaded.encoder, loaded.head, loaded.head_config, gallery, loaded.config, {}
    )
    return folder


@contextmanager
def running_replica(
    args: ServeArgs, name: str, started: Callable[[Galleries], None] | None = None
) -> Iterator[str]:
    """Run a replica behind its HTTP interface in a thread of this process, and yield its URL.

    `started` is given its galleries once they have their bundles.
    """
    import uvicorn

    from serve.api.middleware import InFlight
    from serve.api.routes import build_app
    from serve.args import Wanted
    from serve.galleries import Galleries
    from serve.monitoring.metrics import Metrics
    from serve.shadow_process import beside

    servers: list[uvicorn.Server] = []
    failed: list[BaseException] = []

    async def serve() -> None:
        metrics = Metrics()
        shadow = beside(args, name, metrics)
        galleries = Galleries(args, name=name, observer=metrics.of, shadow=shadow)
        await galleries.change_bundles(Wanted(bundle=args.bundle).model_dump())
        if started is not None:
            started(galleries)
        app = build_app(galleries, metrics, InFlight(), lambda: (1, 1))
        servers.append(uvicorn.Server(uvicorn.Config(app, port=0, log_level="error")))
        await servers[0].serve()
        for replica in galleries:
            replica.engine.close()
        galleries.close()

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            failed.append(error)
            raise

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    while not (servers and servers[0].started):
        if failed:
            raise failed[0]
        time.sleep(0.02)
    port = servers[0].servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    servers[0].should_exit = True
    thread.join(30)


@pytest.fixture(scope="module")
def start_replica(ray_cluster: Any) -> Iterator[Callable[..., str]]:
    """Return what starts a replica with other settings for a module, and gives its URL.

    It is what Ray Serve deploys, but in this process: Ray Serve takes ten times as long to start
    it, and its proxy adds nothing to what these tests are about. (Metrics need a Ray.)
    """
    with ExitStack() as stack:
        yield lambda *given: stack.enter_context(running_replica(*given))


@pytest.fixture(scope="session")
def service_url(start_service: Callable[..., str], service_args: ServeArgs) -> str:
    """Start a service that answers from the tiny bundle."""
    return start_service(service_args, "raycd")


@pytest.fixture(scope="session")
def live_url(ray_cluster: Any, service_args: ServeArgs, tmp_path_factory: Any) -> Iterator[str]:
    """Start a service whose gallery changes: tests add images and remove only their own."""
    database = tmp_path_factory.mktemp("live") / "gallery.sqlite"
    args = service_args.model_copy(update={"gallery": str(database), "max_import": 600})
    with running_replica(args, "live") as url:
        yield url


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


@pytest.fixture(scope="module")
def context(browser: Browser) -> BrowserContext:
    """The context of all pages without options of their own: a test has tabs of its own in it."""
    from tests.serve.pages import new_context

    return new_context(browser)


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """Collect what the browser complains about. A test that provokes it clears it."""
    complaints: list[str] = []
    yield complaints
    assert complaints == []


@pytest.fixture
def opened(
    context: BrowserContext, complaints: list[str]
) -> Iterator[Callable[[str], Callable[..., Page]]]:
    """Return what gives, for the URL of a service, what opens its page (pages.opener)."""
    from tests.serve.pages import opener

    with ExitStack() as stack:
        yield lambda url: stack.enter_context(opener(context, url, complaints))


@pytest.fixture
def open_page(
    opened: Callable[[str], Callable[..., Page]], service_url: str
) -> Callable[..., Page]:
    return opened(service_url)


@pytest.fixture
def page(open_page: Callable[..., Page]) -> Page:
    return open_page()
