"""The guard before all routes: API keys and the Host header; and pages of other origins."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from serve.api import problems
from serve.api.middleware import Checked
from serve.args import ServeArgs
from serve.security.guard import check_host, check_key, needed_scope
from serve.security.keyring import Keyring

_SCHEME = "api_key"  # its name in OpenAPI


def add(app: FastAPI, args: ServeArgs) -> None:
    """Put keys and hosts before `app`, as the settings say. Raises ConfigError for a bad file of
    keys.
    """
    if args.api_keys:
        app.add_middleware(Checked, check=partial(check_key, keyring=Keyring(Path(args.api_keys))))
        _describe_keys(app)
    app.add_middleware(Checked, check=partial(check_host, hosts=frozenset(args.hosts)))


def add_origins(app: FastAPI, args: ServeArgs) -> None:
    """Let pages of other origins use `app`, where the settings name any.

    Outside of all that may refuse a request, or fail: a preflight carries no key, and a page may
    read every error.
    """
    if args.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=args.cors_origins,
            allow_methods=("GET", "POST", "PUT", "DELETE"),
            allow_headers=("authorization", "content-type", "raycd-user", "traceparent"),
            expose_headers=(
                "retry-after",
                "server-timing",
                "raycd-gallery-version",
                "raycd-model",
                "raycd-query-id",
                "traceparent",
            ),
        )


def _describe_keys(app: FastAPI) -> None:
    """Let OpenAPI say which scope each operation needs; then /docs asks for a key."""
    describe: Callable[[], dict[str, Any]] = app.openapi

    def described() -> dict[str, Any]:
        schema = describe()
        schema.setdefault("components", {})["securitySchemes"] = {
            _SCHEME: {"type": "http", "scheme": "bearer"}
        }
        for path, operations in schema["paths"].items():
            for method, operation in operations.items():
                need = needed_scope(method.upper(), path)
                if need is not None:
                    operation["security"] = [{_SCHEME: [need]}]
                    operation["responses"] |= _refusals(401, 403)
        return schema

    app.openapi = described  # type: ignore[method-assign]  # FastAPI's own way to extend it


def _refusals(*statuses: int) -> dict[str, Any]:
    content = {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        str(status): {"description": problems.DESCRIPTIONS[status], "content": content}
        for status in statuses
    }
