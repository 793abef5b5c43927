"""What stands in Ray Serve's own proxy, before the service: its parser of HTTP, and a guard on the
proxy's own paths.

Ray Serve asks for `middlewares` in each proxy, where RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH is
serve.front:middlewares. Nothing here may import torch, which a proxy does not need.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import HTTP_PROTOCOLS

HOSTS = "RAYCD_HOSTS"  # in the environment: `hosts`, with spaces between them
NOT_OURS = "the service does not answer for this Host header; use a name that it knows, or give it this one (hosts)"

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\s:/?#@\[\]]+)(:\d*)?")


def middlewares() -> list[Middleware]:
    """Have the proxy read HTTP by h11, and guard its paths as the service guards its own.

    uvicorn prefers httptools, which keeps a header of any length in memory and loses the body of a
    request that offers to change to HTTP/2 (`Upgrade: h2c`, as Java's client does with each). h11
    takes no headers above 16 KiB, and reads the body.
    """
    HTTP_PROTOCOLS["auto"] = HTTP_PROTOCOLS["h11"]
    return [Middleware(ProxyPaths, hosts=os.environ.get(HOSTS, "").split())]


def names_us(scope: Scope, hosts: Collection[str]) -> bool:
    """Whether the Host header is one of `hosts`; none or * is any."""
    if not hosts or "*" in hosts:
        return True
    host = _HOST.fullmatch(Headers(scope=scope).get("host", "").lower())
    return host is not None and host[1] in hosts


class ProxyPaths:
    """ASGI middleware: 421 at /-/routes where the Host header is not one of ours. (/-/healthz is
    for balancers.)
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self.app, self.hosts = app, frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] == "http"
            and scope["path"] == "/-/routes"
            and not names_us(scope, self.hosts)
        ):
            await PlainTextResponse(NOT_OURS, 421)(scope, receive, send)
            return
        await self.app(scope, receive, send)
