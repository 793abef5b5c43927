"""The transport to a service: requests with retries, and answers or ServiceError."""

from __future__ import annotations

import os
import re
from ipaddress import ip_address
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from raycd import retry_after
from raycd.client import errors, retry, tracing
from raycd.client.retry import Attempts, Retries
from raycd.client.wire import AsyncWire, BlockingWire
from raycd.errors import ConfigError, DataError
from raycd.redact import without_passwords

URL = "http://127.0.0.1:8000"
GALLERIES = "/v1/galleries"
TIMEOUT_S = 40.0  # longer than the service's own 30 s, so that its refusal arrives
_PROXIES = ("all_proxy", "http_proxy", "https_proxy", "no_proxy")

Answer = TypeVar("Answer", bound=BaseModel)


class Transport:
    """The connections to one service, over which requests are sent with retries.

    Written once, with `await`: over a BlockingWire nothing is ever awaited, and `wire.now` returns
    the result. Threads may share it then.
    """

    def __init__(
        self,
        url: str,
        wire: type[BlockingWire] | type[AsyncWire],
        *,
        api_key: str | None,
        gallery: str = "",
        timeout: float,
        retries: Retries,
    ) -> None:
        """Open connections; `timeout` is in seconds, of each wait of a try for the service.

        Raises:
            ConfigError: A url, key, gallery or proxy is impossible, or a certificate cannot be
                read.
        """
        address = _address(url)
        self.root, self.ready = _paths(gallery)
        """What paths of the gallery begin with, and the one that tells whether it is ready."""
        self.url = str(address.copy_with(userinfo=b"")).rstrip("/")
        """The url of the service, without a password."""
        self._timeout, self._retries = timeout, retries
        headers = _headers(api_key)
        if address.userinfo and "Authorization" in headers:
            raise ConfigError(
                "a password in the url and an API key cannot both be sent: one header has both",
                got=f"{self.url}, with a user or password, and an API key",
                do="leave one of them out",
            )
        try:
            self._wire = wire(retries, **_connections(address, headers))
        except OSError as error:  # httpx reads the certificates that the environment names
            raise _uncertified(error) from error
        except (ImportError, ValueError, httpx.InvalidURL) as error:  # httpx's, for odd proxies
            raise _odd_proxies(error) from error

    async def close(self) -> None:
        """Close the connections."""
        await self._wire.close()

    def attempts(self) -> Attempts:
        """Return the tries of a request that begins now."""
        return Attempts(self._retries)

    async def again(self, attempts: Attempts, after: float | None = None) -> bool:
        """Wait for the next try and return True, or return False to give up."""
        wait = attempts.next_wait(after)
        if wait is not None:
            await self._wire.sleep(wait)
        return wait is not None

    async def send(
        self,
        method: str,
        path: str,
        *,
        attempts: Attempts | None = None,
        stream: bool = False,
        **content: Any,
    ) -> httpx.Response:
        """Send a request, with retries; return its successful response.

        Args:
            stream: Do not read the body; the caller has to close the response.
        """
        with tracing.request(method, path) as traced:
            content["headers"] = traced.headers | content.get("headers", {})
            response = await self._sent(
                method, path, attempts or self.attempts(), stream=stream, **content
            )
            traced.answered(response)
            return response

    async def _sent(
        self, method: str, path: str, attempts: Attempts, *, stream: bool, **content: Any
    ) -> httpx.Response:
        while True:
            try:
                # Requests beyond the connections that httpx opens at once (100) wait here for one
                timeout = httpx.Timeout(min(self._timeout, attempts.remaining), pool=None)
                request = self._wire.request(method, path, timeout=timeout, **content)
                response = await self._wire.send(request, stream=stream)
            except httpx.InvalidURL as error:
                raise DataError("the request cannot be sent", got=str(error)) from error
            except httpx.RequestError as failure:
                if retry.is_passing(failure) and await self.again(attempts):
                    continue
                raise errors.unreachable(failure, self.url, tries=attempts.made) from failure
            if response.is_success:
                return response
            after = retry_after.seconds(response.headers.get("retry-after", ""))
            if not (retry.may_succeed(response) and await self.again(attempts, after)):
                raise errors.refused(response, self.url, tries=attempts.made, retry_after=after)

    async def ask(self, kind: type[Answer], method: str, path: str, **content: Any) -> Answer:
        """Send a request, and read the answer as a model."""
        return self.read(await self.send(method, path, **content), kind)

    def read(self, response: httpx.Response, kind: type[Answer]) -> Answer:
        """Read the body of a response as a model. Raises ServiceError where it is another one."""
        try:
            return kind.model_validate_json(response.content)
        except ValidationError as error:
            raise errors.unreadable(response, self.url) from error


def _address(url: str) -> httpx.URL:
    try:
        address = httpx.URL(url)
        is_http = address.scheme in ("http", "https") and bool(address.host)
        address.host.encode("ascii" if ":" in address.host else "idna")
    except (httpx.InvalidURL, UnicodeError):
        address, is_http = httpx.URL(), False
    if not is_http or address.query or address.fragment:
        shown = "one with a password" if "@" in url else repr(url)
        what = "the url of the service is impossible"
        raise ConfigError(what, got=shown, expected=f"http://host:port, as {URL}")
    return address


def _paths(gallery: str) -> tuple[str, str]:
    if not gallery:
        return "/v1", "/readyz"
    if not re.fullmatch(r"[a-z0-9_-]+", gallery):
        raise ConfigError(
            "the name of the gallery is impossible",
            got=repr(gallery),
            expected="a to z, digits, _ and -",
            do="ask the service for its galleries: raycd client galleries",
        )
    root = f"{GALLERIES}/{gallery}"
    return root, f"{root}/readyz"


def _uncertified(error: OSError) -> ConfigError:
    named = [
        f"{name}={value}"
        for name in ("SSL_CERT_FILE", "SSL_CERT_DIR")
        if (value := os.environ.get(name))
    ]
    return ConfigError(
        "the certificates of authorities that are trusted cannot be read",
        got=f"{', '.join(named) or 'those of the system'}: {error.strerror or error}",
        expected="a file of certificates in PEM",
        do="unset the variable, or let it name such a file"
        if named
        else "install the system's ca-certificates",
    )


def _connections(address: httpx.URL, headers: dict[str, str]) -> dict[str, Any]:
    """Return httpx's settings: the environment's proxies are for services on other machines."""
    # httpx logs the address of each request, and whoever logs its messages would have the password
    settings: dict[str, Any] = {"base_url": address.copy_with(userinfo=b""), "headers": headers}
    if address.userinfo:
        settings["auth"] = (address.username, address.password)
    if _is_loopback(address.host):  # a proxy cannot reach the services of this machine
        trusted = httpx.create_ssl_context() if address.scheme == "https" else True
        settings |= {"trust_env": False, "verify": trusted}
    return settings


def _odd_proxies(error: Exception) -> ConfigError:
    named = [name for name in os.environ if name.lower() in _PROXIES]
    return ConfigError(
        "the proxies that the environment names cannot be used",
        got=f"{', '.join(named)}: {without_passwords(str(error))}",
        expected="an http:// or https:// proxy; "
        "in NO_PROXY names and single addresses, no ranges and no brackets",
        do=f"fix the variable, or leave it out: env -u {' -u '.join(named)} ...",
    )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _headers(api_key: str | None) -> dict[str, str]:
    key = (api_key or "").strip()
    if not key:
        return {"User-Agent": "raycd"}
    if not key.isascii() or not key.isprintable():  # httpx's error would show the key
        got = "characters that a header cannot carry"
        raise ConfigError("the API key is impossible", got=got, expected="plain ASCII")
    return {"User-Agent": "raycd", "Authorization": f"Bearer {key}"}
