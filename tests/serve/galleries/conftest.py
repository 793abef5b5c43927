"""A service of its own gallery, shoes with a database, hats of another encoder, and one that cannot
be loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serve import keys
from serve.args import ServeArgs


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.json"


@pytest.fixture(scope="module")
def key(key_file: Path) -> str:
    """A key as it was before there were several galleries."""
    return keys.add(key_file, "all", "write")


@pytest.fixture(scope="module")
def started() -> list[Any]:
    """Keep the galleries, once they are there."""
    return []


@pytest.fixture(scope="module")
def url(
    start_replica: Callable[..., str],
    service_args: ServeArgs,
    bundle_with_head: Callable[[str], Path],
    other_bundle: Path,
    tmp_path_factory: pytest.TempPathFactory,
    key_file: Path,
    key: str,
    started: list[Any],
) -> str:
    database = tmp_path_factory.mktemp("shoes") / "shoes.sqlite"
    galleries = {
        "absent": {"bundle": str(key_file.parent / "absent"), "gallery": "none"},
        "shoes": {"bundle": str(bundle_with_head("sum")), "gallery": str(database)},
        "hats": {"bundle": str(other_bundle), "gallery": "none"},
    }
    settings = {"galleries": galleries, "api_keys": str(key_file)}
    args = ServeArgs.model_validate(service_args.model_dump() | settings)
    return start_replica(args, "galleries", started.append)
