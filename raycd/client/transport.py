"""The way to one service: a request out, with as many tries as it takes, and an answer back or a
ServiceError.
"""

from __future__ import annotations

import os
from ipaddress import ip_address
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from raycd.client import errors, retry
from raycd.client.retry import Attempts, Retries
from raycd.errors import ConfigError
from raycd.redact import without_passwords

URL = "http://127.0.0.1:8000"
TIMEOUT_S = 40.0  # longer than the service's own 30 s, so that its refusal is heard
_PROXIES = ("all_proxy", "http_proxy", "https_proxy", "no_proxy")

Answer = TypeVar("Answer", bound=BaseModel)


class Transport:
    """The connections to one service; threads may share it."""

    def __init__(self, url: str, *, api_key: str | None, timeout: float, retries: Retries) -> None:
        """`timeout` is in seconds, of one try.

        Raises ConfigError for an impossible url, key or proxy, and for certificates that cannot be
        read.
        """
        address = _address(url)
        self.url = str(address.copy_with(userinfo=b"")).rstrip("/")
        """The service's, without a password."""
        self._timeout, self._retries = timeout, retries
        headers = _headers(api_key)
        try:
            self._http = _connections(address, headers)
        except OSError as error:  # httpx reads the certificates that the environment names
            raise _uncertified(error) from error

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def attempts(self) -> Attempts:
        """The tries of a request that begins now."""
        return Attempts(self._retries)

    def send(
        self,
        method: str,
        path: str,
        *,
        attempts: Attempts | None = None,
        stream: bool = False,
        **content: Any,
    ) -> httpx.Response:
        """The response of success; with `stream` its body is still to be read, and it is the
        caller's to close.
        """
        attempts = attempts or self.attempts()
        while True:
            try:
                timeout = min(self._timeout, attempts.remaining)
                request = self._http.build_request(method, path, timeout=timeout, **content)
                response = self._http.send(request, stream=stream)
                if not response.is_success:
                    response.read()  # what refuses is short, and its words are needed
            except httpx.RequestError as failure:
                if retry.is_passing(failure) and attempts.again():
                    continue
                raise errors.unreachable(failure, self.url, tries=attempts.made) from failure
            if response.is_success:
                return response
            after = retry.retry_after(response)
            if not (retry.may_succeed(response) and attempts.again(after)):
                raise errors.refused(response, self.url, tries=attempts.made, retry_after=after)

    def ask(self, kind: type[Answer], method: str, path: str, **content: Any) -> Answer:
        """Send, and read the answer as what it is to be."""
        return self.read(self.send(method, path, **content), kind)

    def read(self, response: httpx.Response, kind: type[Answer]) -> Answer:
        """The body of a response. Raises ServiceError where it is something else."""
        try:
            return kind.model_validate_json(response.content)
        except ValidationError as error:
            raise errors.unreadable(response, self.url) from error


def _address(url: str) -> httpx.URL:
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL:
        address = httpx.URL()
    if (
        address.scheme not in ("http", "https")
        or not address.host
        or address.query
        or address.fragment
    ):
        shown = "one with a password" if "@" in url else repr(url)
        raise ConfigError(
            "the url of the service is impossible",
            got=shown,
            expected=f"http://host:port, as {URL}",
        )
    return address


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


def _connections(address: httpx.URL, headers: dict[str, str]) -> httpx.Client:
    """httpx's client, through the proxies that the environment names where the service is on
    another machine.
    """
    if _is_loopback(address.host):  # proxies know nothing of this machine's own services
        trusted = httpx.create_ssl_context() if address.scheme == "https" else True
        return httpx.Client(base_url=address, headers=headers, trust_env=False, verify=trusted)
    try:
        return httpx.Client(base_url=address, headers=headers)
    except (ImportError, ValueError, httpx.InvalidURL) as error:  # what httpx makes of them
        named = [name for name in os.environ if name.lower() in _PROXIES]
        raise ConfigError(
            "the proxies that the environment names cannot be used",
            got=f"{', '.join(named)}: {without_passwords(str(error))}",
            expected="an http:// or https:// proxy; in NO_PROXY names and single addresses, no ranges and no brackets",
            do=f"fix the variable, or leave it out: env -u {' -u '.join(named)} ...",
        ) from error


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _headers(api_key: str | None) -> dict[str, str]:
    key = (api_key or "").strip()
    if not key:
        return {"User-Agent": "raycd"}
    if not key.isascii() or not key.isprintable():  # an error of httpx's would show it
        raise ConfigError(
            "the API key is impossible",
            got="letters that a header cannot carry",
            expected="plain ASCII",
        )
    return {"User-Agent": "raycd", "Authorization": f"Bearer {key}"}
