"""GET /readyz is red as soon as the encoder or the search of a replica fails, or a replica is
missing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from fastapi import Depends, FastAPI
from starlette.testclient import TestClient

from raycd.index import Index
from serve.api import health, problems
from serve.api.served import Served
from serve.args import DEFAULT, ServeArgs
from serve.engine.engine import Engine
from tests.serve.asking import problem


class Replica:
    """A replica whose real engine answers the canary, and whose number is given."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.gallery = engine, DEFAULT
        self.count = 2, 2
        self.hangs = False

    async def check_canary(self) -> None:
        canary = self.engine.canary
        [answer] = self.engine.searcher.answer([canary])
        self.engine.check(answer, canary.view)

    async def check_gallery(self) -> None:
        """The gallery is the bundle's own; `hangs`: as where its database does not answer."""
        if self.hangs:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()

    def count_replicas(self) -> tuple[int, int]:
        """Return what Ray Serve would count."""
        return self.count


@pytest.fixture
def replica(tiny_bundle: Any) -> Iterator[Replica]:
    with ThreadPoolExecutor(1) as model:
        yield Replica(Engine(tiny_bundle.folder, ServeArgs(), threads=1, model=model, store=None))


@pytest.fixture
def client(replica: Any) -> TestClient:
    app = FastAPI()
    problems.add_handlers(app)

    async def asked() -> Served:
        return Served(replica, *[None] * 2)  # type: ignore[arg-type]  # no body, no search

    app.include_router(health.alive())
    app.include_router(health.router(Depends(asked), "", replica.count_replicas))
    return TestClient(app)


def without_weights(engine: Engine) -> None:
    for weights in engine.bundle.encoder.parameters():
        weights.data.fill_(torch.nan)


def without_image_encoder(engine: Engine) -> None:
    engine.bundle.encoder.clip.visual = torch.nn.Identity()


def with_vectors_of_another_size(engine: Engine) -> None:
    other = Index.build(
        np.ones((3, engine.bundle.index.dim + 1), np.float32), engine.bundle.config.index
    )
    engine.bundle.index._structure = other._structure


@pytest.mark.parametrize(
    "spoil", [without_weights, without_image_encoder, with_vectors_of_another_size]
)
def test_an_encoder_or_a_search_that_fails_is_not_ready(
    client: TestClient, replica: Replica, spoil: Callable[[Engine], None]
) -> None:
    said = client.get("/readyz").json()
    assert (said["status"], said["replicas"]) == ("ready", 2)
    assert 0 <= said["age_s"] <= 10
    spoil(replica.engine)
    time.sleep(health.FRESH_S)
    said = problem(client.get("/readyz"), 503)
    assert "does not answer its canary query" in said["detail"]
    assert client.get("/healthz").status_code == 200


def test_a_replica_that_is_missing_is_not_ready(client: TestClient, replica: Replica) -> None:
    replica.count = 1, 2
    response = client.get("/readyz")
    assert "1 of 2 replicas" in problem(response, 503)["detail"]
    assert int(response.headers["Retry-After"]) >= 1


def test_a_gallery_that_hangs_is_not_ready(client: TestClient, replica: Replica) -> None:
    replica.hangs = True
    response = client.get("/readyz")
    assert "the gallery's database" in problem(response, 503)["detail"]
    assert int(response.headers["Retry-After"]) >= 1
