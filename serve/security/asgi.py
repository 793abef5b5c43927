"""What every ASGI middleware of ours needs: requests of HTTP alone, and what their paths say."""

from __future__ import annotations

from abc import ABC, abstractmethod

from starlette.types import ASGIApp, Receive, Scope, Send

from serve.args import DEFAULT

GALLERIES = "/v1/galleries"  # the list of galleries, and before the name of one in its addresses


class HttpMiddleware(ABC):
    """An ASGI middleware that handles requests of HTTP; whatever else comes passes through."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handle = self.handle if scope["type"] == "http" else self.app
        await handle(scope, receive, send)

    @abstractmethod
    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it to `self.app`."""


def route_path(scope: Scope) -> str:
    """Return the path that routes are matched by: without the prefix that the service is under.

    Starlette routes by the same rule, but keeps its function to itself.
    """
    path, prefix = str(scope["path"]), str(scope.get("root_path", ""))
    if path == prefix or path.startswith(f"{prefix}/"):
        return path.removeprefix(prefix)
    return path


def split_gallery(path: str) -> tuple[str, str]:
    """Return the gallery that a path is of, and the path that says the same of the default one.

    /v1/galleries/shoes/search is shoes, /v1/search.
    """
    if not path.startswith(f"{GALLERIES}/"):
        return DEFAULT, path
    gallery, _, rest = path.removeprefix(f"{GALLERIES}/").partition("/")
    return gallery, f"/v1/{rest}"
