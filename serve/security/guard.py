"""Which requests may come in: by the API key that they carry, and by the host that they name."""

from __future__ import annotations

import re
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import Scope

from raycd.hosts import as_browsers_write
from serve.errors import KeyElsewhere, KeyMissing, KeyTooWeak, UnknownHost
from serve.security.asgi import GALLERIES, route_path, split_gallery
from serve.security.keyring import Key, Keyring
from serve.security.keyring import Scope as KeyScope

NOT_OURS = (
    "the service does not answer for this Host header; use a name that it knows, "
    "or give it this one (hosts)"
)

# Whatever is not named here needs a key, so that a new route is safe before anybody thinks of it.
_OPEN = ("", "/", "/healthz", "/readyz", "/docs", "/docs/oauth2-redirect", "/openapi.json")
_OPEN_FOLDERS = ("/web/", "/static-offline-docs/")
_READING = ("/v1/search", "/v1/embed", "/v1/events")  # what is posted changes no gallery
_ANY_HOST = ("/healthz", "/readyz")  # load balancers ask by an address of their own choice
_KEY = "raycd.key"  # in the scope of a request: its key
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\s:/?#@\[\]]+)(:\d*)?")


def needed_scope(method: str, path: str) -> KeyScope | None:
    """Return the scope of the key that a request needs; None where it needs no key."""
    _, path = split_gallery(path)
    if method in ("GET", "HEAD"):
        return None if path in _OPEN or path.startswith(_OPEN_FOLDERS) else "read"
    reads = path in _READING or path.startswith(tuple(f"{one}/" for one in _READING))
    return "read" if method == "POST" and reads else "write"


def check_key(scope: Scope, keyring: Keyring) -> None:
    """Raise KeyMissing, KeyElsewhere or KeyTooWeak where the request's key does not allow it."""
    path = route_path(scope)
    need = needed_scope(scope["method"], path)
    if need is None:
        return
    kind, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not given.strip():
        raise KeyMissing("this service wants an API key", "Bearer")
    found = keyring.find(given.strip())
    if found is None:
        raise KeyMissing("the API key is unknown here, or revoked", 'Bearer error="invalid_token"')
    gallery, _ = split_gallery(path)
    if path != GALLERIES and not found.opens(gallery):  # before it is known whether there is one
        raise KeyElsewhere(
            f"the API key is for other galleries than {gallery!r}; "
            "ask whoever runs the service for such a key"
        )
    scope[_KEY] = found
    if need == "write" and found.scope == "read":
        raise KeyTooWeak(
            "the API key has the scope read, this needs write; "
            "ask whoever runs the service for such a key"
        )


def key_of(scope: Scope) -> Key | None:
    """Return the key that let a request in; None where it needed none."""
    found: Key | None = scope.get(_KEY)
    return found


def check_host(scope: Scope, hosts: Collection[str]) -> None:
    """Raise UnknownHost where the Host header is not one of `hosts`.

    A page of an attacker whose name points to our address (DNS rebinding) is of our origin to a
    browser, but the browser still sends that name.
    """
    if route_path(scope) not in _ANY_HOST and not is_known_host(scope, hosts):
        raise UnknownHost(NOT_OURS)


def is_known_host(scope: Scope, hosts: Collection[str]) -> bool:
    """Return whether the Host header is one of `hosts`; none or * is any."""
    if not hosts or "*" in hosts:
        return True
    host = _HOST.fullmatch(Headers(scope=scope).get("host", "").lower())
    if host is None:
        return False
    try:
        return as_browsers_write(host[1]) in hosts
    except ValueError:
        return False
