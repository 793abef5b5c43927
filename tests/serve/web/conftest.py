"""What the tests of the page share: services with galleries of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from serve.args import ServeArgs


@pytest.fixture(scope="module")
def start(
    start_replica: Callable[..., str],
    service_args: ServeArgs,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., str]:
    """Return what starts a service with a gallery of its own, and gives its URL."""

    def start(name: str, **settings: Any) -> str:
        settings.setdefault("gallery", str(tmp_path_factory.mktemp(name) / "gallery.sqlite"))
        return start_replica(service_args.model_copy(update=settings), name)

    return start
