"""The first model and the second as services of their own, to compare answers with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.args import ServeArgs

Start = Callable[..., httpx.Client]


@pytest.fixture(scope="module")
def start(start_replica: Callable[..., str], service_args: ServeArgs) -> Iterator[Start]:
    """Return what starts a replica with some settings, and gives a client of it."""
    with ExitStack() as stack:

        def started(name: str, then: Any = None, **settings: Any) -> httpx.Client:
            args = ServeArgs.model_validate(service_args.model_dump() | settings)
            client = httpx.Client(base_url=start_replica(args, name, then), timeout=60)
            return stack.enter_context(client)

        yield started


@pytest.fixture(scope="module")
def first(start: Start) -> httpx.Client:
    """Return a client of the first model alone."""
    return start("first")


@pytest.fixture(scope="module")
def other(start: Start, other_bundle: Path) -> httpx.Client:
    """Return a client of the second model alone."""
    return start("other", bundle=str(other_bundle))


def results(answer: dict[str, Any]) -> list[tuple[str, float]]:
    """Return what an answer has found, with scores as far as batches leave them alike."""
    return [(found["image_id"], round(found["score"], 4)) for found in answer["results"]]
