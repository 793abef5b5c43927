"""What the log says of an error, and what the client gets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from starlette.testclient import TestClient

from raycd.errors import GalleryError
from serve.api import problems
from serve.api.image_body import check
from serve.api.middleware import ErrorResponses, InFlight, Requests
from serve.api.routes import build_app
from serve.args import ServeArgs
from serve.errors import (
    Busy,
    KeyElsewhere,
    KeyMissing,
    KeyTooWeak,
    NoSuchGallery,
    NoSuchImage,
    NoSuchVersion,
    NotLoaded,
    RequestError,
    UnknownHost,
    UnreadablePicture,
)
from serve.galleries import Galleries
from serve.monitoring.metrics import Metrics
from tests.serve.api.test_guard import PAGE, call, preflight
from tests.serve.asking import problem

SECRET = "/home/ann/keys.json"


class Counted:
    """Metrics that keep what `Requests` records."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, int]] = []
        self.galleries: list[str] = []

    def request(self, path: str, status: int, seconds: float, gallery: str) -> None:
        self.requests.append((path, status))
        self.galleries.append(gallery)


@pytest.fixture(autouse=True)
def _listened(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hear the log, which Ray Serve, where it has been started, keeps to itself."""
    logger = logging.getLogger("ray.serve")
    monkeypatch.setattr(logger, "propagate", False)
    logger.addHandler(caplog.handler)
    yield
    logger.removeHandler(caplog.handler)


@pytest.fixture
def counted() -> Counted:
    return Counted()


@pytest.fixture
def app(counted: Counted) -> FastAPI:
    """Return routes that fail in every way, behind what stands before all routes."""
    app = FastAPI()
    problems.add_handlers(app)

    @app.get("/ours")
    async def ours() -> None:
        check(None, None, None, None)  # type: ignore[arg-type]  # a mistake in our code

    @app.get("/library/{name}")
    async def library(name: str) -> None:
        raise OSError(2, "No such file", SECRET)

    @app.get("/database")
    async def database() -> None:
        raise GalleryError(
            f"writing failed: {SECRET}", "locked", got="postgresql://ann:secret@host/db"
        )

    @app.get("/late")
    async def late() -> StreamingResponse:
        async def parts() -> AsyncIterator[str]:
            yield "a part"
            raise ValueError(SECRET)

        return StreamingResponse(parts())

    @app.post("/slow")
    async def slow(request: Request) -> bytes:
        return await request.body()

    @app.get("/v1/galleries/{gallery}/info")
    async def info() -> None:
        """Return nothing."""

    known = ("default", "shoes")
    app.add_middleware(ErrorResponses)
    app.add_middleware(Requests, in_flight=InFlight(), metrics=counted, galleries=known)
    return app


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app) as client:
        yield client


def logged(caplog: pytest.LogCaptureFixture) -> str:
    """Return the one line that was logged."""
    [record] = [record for record in caplog.records if record.name == "ray.serve"]
    text = record.getMessage()
    assert record.exc_info is None
    assert not any(secret in text for secret in ("\n", "/home", "Traceback", "secret"))
    return text


@pytest.mark.parametrize(
    ("path", "route", "said"),
    [
        ("/ours", "/ours", "GET /ours failed: AttributeError at serve.api.image_body:"),
        ("/library/x", "/library/{name}", "GET /library/{name} failed: FileNotFoundError"),
    ],
)
def test_an_error_of_the_service_is_a_problem_and_a_line_of_the_log(
    client: TestClient,
    counted: Counted,
    caplog: pytest.LogCaptureFixture,
    path: str,
    route: str,
    said: str,
) -> None:
    response = client.get(path)
    body = problem(response, 500)
    assert "log" in body["detail"]
    assert "ann" not in response.text
    assert logged(caplog).startswith(said)
    assert counted.requests == [(route, 500)]


def test_what_the_database_says_is_logged_without_path_and_password(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    response = client.get("/database")
    assert "busy" in problem(response, 503)["detail"]
    assert response.headers["retry-after"] == "1"
    assert "keys.json" in logged(caplog)


def test_an_answer_that_broke_off_is_not_taken_for_a_whole_one(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConnectionAbortedError):
        client.get("/late")
    assert "GET /late failed: ValueError" in logged(caplog)


@pytest.mark.parametrize("gone", ["disconnects", "is cancelled"])
def test_a_client_that_has_gone_is_no_error(
    app: FastAPI, counted: Counted, caplog: pytest.LogCaptureFixture, gone: str
) -> None:
    async def receive() -> dict[str, str]:
        if gone == "is cancelled":
            await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def ask() -> None:
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/slow",
            "query_string": b"",
            "headers": [],
        }

        async def send(message: object) -> None:
            pass

        task = asyncio.ensure_future(app(scope, receive, send))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with caplog.at_level(logging.ERROR):
        asyncio.run(ask())
    assert counted.requests == [("/slow", 499)]
    assert not caplog.records


@pytest.mark.parametrize(
    ("error", "status", "header"),
    [
        (Busy("full"), 503, {"Retry-After": "1"}),
        (NoSuchImage("a"), 404, None),
        (NoSuchVersion(8, newest=7), 422, None),
        (UnreadablePicture("a", "missing"), 404, None),
        (KeyMissing("no key", "Bearer"), 401, {"WWW-Authenticate": "Bearer"}),
        (KeyTooWeak("reads"), 403, {"WWW-Authenticate": KeyTooWeak.challenge}),
        (UnknownHost("not ours"), 421, None),
    ],
)
def test_what_a_replica_cannot_do_is_a_problem_of_the_client(
    error: RequestError, status: int, header: dict[str, str] | None
) -> None:
    found = problems.of(error)
    assert found is not None
    assert (found.status_code, found.headers) == (status, header)
    assert str(error) in found.problem.detail


def test_a_request_counts_for_its_gallery_by_the_route_of_the_default_one(
    client: TestClient, counted: Counted
) -> None:
    for gallery in ("shoes", "default", "of-a-client's-choice"):
        assert client.get(f"/v1/galleries/{gallery}/info").status_code == 200
    assert client.get("/nowhere").status_code == 404
    assert counted.requests == [*[("/v1/info", 200)] * 3, ("other", 404)]
    assert counted.galleries == ["shoes", "default", "other", "default"]


def test_every_error_of_a_request_has_its_problem() -> None:
    made = {Busy, NoSuchGallery, NoSuchImage, NoSuchVersion, NotLoaded, UnreadablePicture}
    refused = {KeyElsewhere, KeyMissing, KeyTooWeak, UnknownHost}
    assert set(RequestError.__subclasses__()) == made | refused


def test_a_mistake_of_the_client_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert problems.logged(problems.busy("full"), "a search").status_code == 503
    assert problems.logged(httpx.HTTPError("x"), "a search").status_code == 500
    assert len(caplog.records) == 1


@pytest.mark.parametrize("status", [421, 500, 503, 507])
def test_a_page_of_an_allowed_origin_may_read_what_no_route_answers(
    tiny_bundle: Any, ray_cluster: Any, status: int
) -> None:
    in_flight, metrics = InFlight(), Metrics()
    in_flight.draining = status == 503
    settings = {"hosts": ["shop.example"] if status == 421 else []}
    args = ServeArgs(
        bundle=str(tiny_bundle.folder), gallery="none", cors_origins=(PAGE,), **settings
    )
    app = build_app(
        Galleries(args, name="cors", observer=metrics.of), metrics, in_flight, lambda: (1, 1)
    )

    @app.get("/fails")
    async def fails() -> None:
        raise GalleryError("full", "full") if status == 507 else OSError

    response = call(app, "GET", "/fails", headers={"Origin": PAGE})
    problem(response, status)
    assert response.headers["access-control-allow-origin"] == PAGE
    assert preflight(app, PAGE, "PUT").status_code == 200
