"""What runs in Ray Serve's own proxy, before the service: a parser of HTTP, a guard of its paths.

Each proxy calls `middlewares` where RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH is
serve.security.front:middlewares. Nothing here may import torch, which a proxy does not need.
"""

from __future__ import annotations

import os
from collections.abc import Collection

from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import HTTP_PROTOCOLS

from serve.security.asgi import HttpMiddleware
from serve.security.guard import NOT_OURS, is_known_host

HOSTS = "RAYCD_HOSTS"  # in the environment: `hosts`, with spaces between them


def middlewares() -> list[Middleware]:
    """Have the proxy read HTTP by h11, and guard its paths as the service guards its own.

    uvicorn prefers httptools, which keeps a header of any length in memory and loses the body of a
    request that offers to change to HTTP/2 (`Upgrade: h2c`, as Java's client does with each). h11
    takes no headers above 16 KiB, and reads the body. Ray Serve's proxy makes uvicorn's settings
    itself and has none for this, hence the change of uvicorn's table.
    """
    HTTP_PROTOCOLS["auto"] = HTTP_PROTOCOLS["h11"]
    return [Middleware(ProxyPaths, hosts=os.environ.get(HOSTS, "").split())]


class ProxyPaths(HttpMiddleware):
    """Answers 421 at /-/routes where the Host header is unknown. (/-/healthz is for balancers.)"""

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        super().__init__(app)
        self.hosts = frozenset(hosts)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/-/routes" and not is_known_host(scope, self.hosts):
            await PlainTextResponse(NOT_OURS, 421)(scope, receive, send)
        else:
            await self.app(scope, receive, send)
