"""What stands before all routes: the Host header, pages of other origins, and API keys."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette._utils import get_route_path
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from serve import problems
from serve.args import ServeArgs
from serve.front import NOT_OURS, names_us
from serve.keyring import Keyring
from serve.keyring import Scope as KeyScope

# Whatever is not named here needs a key, so that a new route is safe before anybody thinks of it.
_OPEN = ("", "/", "/healthz", "/readyz", "/docs", "/docs/oauth2-redirect", "/openapi.json")
_OPEN_FOLDERS = ("/web/", "/static-offline-docs/")
_ANY_HOST = ("/healthz", "/readyz")  # load balancers ask by an address of their own choice
_SCHEME = "api_key"  # its name in OpenAPI


def add(app: FastAPI, args: ServeArgs) -> None:
    """Put before `app` what `args` ask for. Raises ConfigError where the keys cannot be read."""
    if args.api_keys:
        app.add_middleware(Keys, keyring=Keyring(Path(args.api_keys)))
        _declare(app)
    if (
        args.cors_origins
    ):  # outside of the keys: a preflight carries none, and a page may read why it is refused
        app.add_middleware(
            CORSMiddleware,
            allow_origins=args.cors_origins,
            allow_methods=("GET", "POST", "PUT", "DELETE"),
            allow_headers=("authorization", "content-type"),
            expose_headers=("retry-after", "server-timing", "raycd-gallery-version"),
        )
    app.add_middleware(Hosts, hosts=args.hosts)


def needed(method: str, path: str) -> KeyScope | None:
    """The scope of the key that a request needs; None where it needs no key."""
    if method in ("GET", "HEAD"):
        return None if path in _OPEN or path.startswith(_OPEN_FOLDERS) else "read"
    searches = path == "/v1/search" or path.startswith("/v1/search/")
    return "read" if method == "POST" and searches else "write"


class Keys:
    """ASGI middleware: 401 without a key, 403 with one that may not do this, before any of the body
    is read.
    """

    def __init__(self, app: ASGIApp, keyring: Keyring) -> None:
        self.app, self.keyring = app, keyring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = self._refused(scope) if scope["type"] == "http" else None
        await (self.app if refused is None else problems.response(refused))(scope, receive, send)

    def _refused(self, scope: Scope) -> problems.ProblemError | None:
        need = needed(scope["method"], get_route_path(scope))
        if need is None:
            return None
        kind, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not given.strip():
            return _unauthorized("this service wants an API key", "Bearer")
        found = self.keyring.find(given.strip())
        if found is None:
            return _unauthorized(
                "the API key is unknown here, or revoked", 'Bearer error="invalid_token"'
            )
        if need == "write" and found.scope == "read":
            return problems.ProblemError(
                403,
                "the API key has the scope read, this needs write; ask whoever runs the service for such a key",
                headers={"WWW-Authenticate": 'Bearer error="insufficient_scope", scope="write"'},
            )
        return None


def _unauthorized(what: str, challenge: str) -> problems.ProblemError:
    detail = f"{what}; send the header Authorization: Bearer <key>"
    return problems.ProblemError(401, detail, headers={"WWW-Authenticate": challenge})


class Hosts:
    """ASGI middleware: 421 where the Host header is not one of ours.

    A page of an attacker whose name he lets point to our address (DNS rebinding) is of our origin
    to a browser, but it still sends that name.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self.app, self.hosts = app, frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] != "http"
            or get_route_path(scope) in _ANY_HOST
            or names_us(scope, self.hosts)
        ):
            await self.app(scope, receive, send)
            return
        await problems.response(problems.ProblemError(421, NOT_OURS))(scope, receive, send)


def _declare(app: FastAPI) -> None:
    """Let OpenAPI say which scope each operation needs; then /docs asks for a key."""
    describe: Callable[[], dict[str, Any]] = app.openapi

    def described() -> dict[str, Any]:
        schema = describe()
        schema.setdefault("components", {})["securitySchemes"] = {
            _SCHEME: {"type": "http", "scheme": "bearer"}
        }
        for path, operations in schema["paths"].items():
            for method, operation in operations.items():
                need = needed(method.upper(), path)
                if need is not None:
                    operation["security"] = [{_SCHEME: [need]}]
                    operation["responses"] |= (
                        _refusals(401) if need == "read" else _refusals(401, 403)
                    )
        return schema

    app.openapi = described  # type: ignore[method-assign]


def _refusals(*statuses: int) -> dict[str, Any]:
    content = {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        str(status): {"description": problems.DESCRIPTIONS[status], "content": content}
        for status in statuses
    }
