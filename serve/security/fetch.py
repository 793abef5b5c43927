"""The fetch of a URL that a stranger names (`image_url`), without harm to the own network.

Only https on one port, without credentials. A host's addresses are looked up once, all of them must
be public, and the connection goes to one of those very addresses: an answer of DNS that changes in
between has no effect. Redirects and encoded bodies are refused; bytes and seconds are capped,
however slowly they come.

FetchError           a DataError with a `reason`; its message names no address of the own network
├── FetchRefused     the URL, or what its server answers, is not allowed
└── FetchFailed      it is allowed, but the server did not give a file

This is httpcore, the layer beneath httpx: it follows no redirects, decodes no bodies and reads no
proxies from the environment, so none of these can be left on.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, NamedTuple
from urllib.parse import quote

import httpcore
import httpx

from raycd import __version__
from raycd.errors import DataError
from serve.security.addresses import Address, is_public

MAX_URL = 2048  # characters
ATTEMPTS = 3  # addresses of a host that are tried
# Lookups at a time, in threads of their own: a name server that hangs must not hold up other work.
LOOKUPS = 8

_AUTHORITY = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(:(?P<port>[0-9]{1,5}))?")
_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"(?!.{{254}})({_LABEL}\.)+{_LABEL}")
# As the last label of a host: an IPv4 address in one of its many forms.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_TARGET = "/?%:@!$&'()*+,;=~[]"  # beside letters, digits and _.-; all else is percent-encoded
_SEND = "send the image itself"


class FetchError(DataError):
    """A file could not be fetched. `reason` is one word, for programs."""

    def __init__(
        self,
        what: str,
        *,
        reason: str,
        got: object = None,
        expected: object = None,
        do: str | None = None,
    ) -> None:
        super().__init__(what, got=got, expected=expected, do=do)
        self.reason = reason


class FetchRefused(FetchError):
    """A URL, or what its server answers, is not allowed.

    `reason`: malformed, scheme, credentials, port, address, redirect, encoding or too_large.
    """


class FetchFailed(FetchError):
    """A URL is allowed, but its server did not give a file.

    `reason`: unreachable, tls, timeout, status or protocol.
    """


async def look_up(host: str, port: int) -> list[str]:
    """Return the addresses of a host by the system's resolver. Raises OSError where it has none."""
    loop = asyncio.get_running_loop()
    found = await loop.run_in_executor(
        _lookups(), socket.getaddrinfo, host, port, 0, socket.SOCK_STREAM
    )
    return [str(entry[4][0]) for entry in found]


@cache
def _lookups() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(LOOKUPS, "look-up")


@cache
def _trusted() -> ssl.SSLContext:
    return httpx.create_ssl_context()


@dataclass(frozen=True)
class Network:
    """The way to hosts: how they are found, which may be reached, which certificates are good."""

    port: int = 443
    look_up: Callable[[str, int], Awaitable[Sequence[str]]] = look_up
    allowed: Callable[[Address], bool] = is_public
    tls: Callable[[], ssl.SSLContext] = _trusted


INTERNET = Network()


async def fetch(
    url: str, *, max_bytes: int, timeout_s: float, network: Network = INTERNET
) -> bytes:
    """Return the bytes at `url`, which need not be an image.

    Args:
        url: Of https, on the network's port, without credentials.
        max_bytes: More are refused.
        timeout_s: Seconds for all of it.
        network: The internet; a test's own.

    Raises:
        FetchRefused: The URL, or what its server answers, is not allowed.
        FetchFailed: It is allowed, but the server did not give a file.
    """
    checked = _checked(url, network.port)
    try:
        async with asyncio.timeout(timeout_s):
            return await _get(checked, max_bytes, timeout_s, network)
    except TimeoutError as error:
        raise FetchFailed(
            f"the image was not there within {timeout_s:g} s", reason="timeout", do=_SEND
        ) from error
    except (httpcore.NetworkError, httpcore.TimeoutException) as error:
        raise _unreachable(error) from error
    except (httpcore.ProtocolError, ssl.SSLError) as error:  # of TLS once its handshake was done
        raise FetchFailed(
            "the answer of the URL's host is broken or cut off", reason="protocol", do=_SEND
        ) from error


class _CheckedUrl(NamedTuple):
    """A URL whose form is allowed."""

    authority: str
    host: str  # in small letters; an IPv6 address without its brackets
    target: str  # path and query


def _checked(url: str, port: int) -> _CheckedUrl:
    if len(url) > MAX_URL:
        raise FetchRefused(
            "the URL is too long", reason="malformed", got=len(url), expected=f"at most {MAX_URL}"
        )
    if not url.isprintable():
        raise FetchRefused(
            "the URL holds characters that no URL has", reason="malformed", do="leave them out"
        )
    scheme, _, rest = url.partition("://")
    if scheme.lower() != "https":
        raise FetchRefused(
            "the URL is not one of https", reason="scheme", expected="https://...", do=_SEND
        )
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        raise FetchRefused(
            "the URL holds a user name or password", reason="credentials", do="leave it out"
        )
    match = _AUTHORITY.fullmatch(authority)
    if not match or not _is_host(host := match["host"].lower()):
        raise FetchRefused(
            "the URL's host is not written in full",
            reason="malformed",
            expected="a name such as images.example.org (xn-- for other letters), "
            "or four numbers from 0 to 255",
        )
    if int(match["port"] or 443) != port:
        raise FetchRefused("the URL names a port", reason="port", got=match["port"], expected=port)
    path = rest.removeprefix(authority).partition("#")[0]
    target = quote(path if path.startswith("/") else f"/{path}", safe=_TARGET)
    return _CheckedUrl(authority, host.strip("[]"), target)


def _is_host(host: str) -> bool:
    # A name of several labels, or an address in its usual form: not 127.1, 0177.0.0.1, 2130706433.
    if host[0] != "[" and not _NUMBER.fullmatch(host.rpartition(".")[2]):
        return _NAME.fullmatch(host) is not None
    try:
        IPv6Address(host[1:-1]) if host[0] == "[" else IPv4Address(host)
    except ValueError:
        return False
    return True


async def _get(checked: _CheckedUrl, max_bytes: int, timeout_s: float, network: Network) -> bytes:
    headers = [
        ("Host", checked.authority),
        ("User-Agent", f"raycd/{__version__}"),
        ("Accept", "image/*"),
        ("Accept-Encoding", "identity"),
        ("Connection", "close"),
    ]
    url = httpcore.URL(scheme="https", host=checked.host, port=network.port, target=checked.target)
    async with (
        aclosing(_CheckedBackend(network, timeout_s)) as backend,
        httpcore.AsyncConnectionPool(
            network.tls(), max_connections=1, network_backend=backend
        ) as pool,
        pool.stream("GET", url, headers=headers) as response,
    ):
        _check(response, max_bytes)
        content = bytearray()
        async for chunk in response.aiter_stream():
            content += chunk
            if len(content) > max_bytes:
                raise _too_large(max_bytes)
        return bytes(content)


def _check(response: httpcore.Response, max_bytes: int) -> None:
    """Refuse by its status and headers an answer whose body need not be read."""
    headers = {name.lower(): value for name, value in response.headers}
    if 300 <= response.status < 400:
        do = "give the URL that it leads to"
        raise FetchRefused(
            "the URL leads to another one (a redirect)",
            reason="redirect",
            got=response.status,
            do=do,
        )
    if response.status != 200:
        got = f"status {response.status}"
        raise FetchFailed(
            "the URL's host gives no image",
            reason="status",
            got=got,
            expected="status 200",
            do=_SEND,
        )
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise FetchRefused(
            "the URL's host compresses what it was asked to send as it is",
            reason="encoding",
            do=_SEND,
        )
    if int(headers.get(b"content-length", 0)) > max_bytes:
        raise _too_large(max_bytes)


def _too_large(max_bytes: int) -> FetchRefused:
    expected, do = f"at most {max_bytes} bytes (max_body_bytes)", "give the URL of a smaller one"
    return FetchRefused(
        "the image at the URL is larger than the limit",
        reason="too_large",
        expected=expected,
        do=do,
    )


def _unreachable(error: Exception) -> FetchFailed:
    cause = error.__context__  # httpcore raises its own errors "from None"
    if isinstance(cause, ssl.SSLError):
        got = cause.verify_message if isinstance(cause, ssl.SSLCertVerificationError) else None
        return FetchFailed("the URL's host cannot show who it is", reason="tls", got=got, do=_SEND)
    return FetchFailed("the URL's host cannot be reached", reason="unreachable", do=_SEND)


class _CheckedBackend(httpcore.AnyIOBackend):
    """A backend that connects to the very addresses that it has looked up and found allowed."""

    def __init__(self, network: Network, timeout_s: float) -> None:
        self._network, self._timeout_s = network, timeout_s
        self._stream: httpcore.AsyncNetworkStream | None = None

    async def aclose(self) -> None:
        # httpcore forgets one whose TLS handshake is cancelled: its socket would stay open.
        if self._stream is not None:
            await self._stream.aclose()

    async def connect_tcp(
        self, host: str, port: int, *_: Any, **__: Any
    ) -> httpcore.AsyncNetworkStream:
        *others, last = (await self._addresses(host, port))[:ATTEMPTS]
        # An address that never answers leaves time for the next.
        share_s = self._timeout_s / (len(others) + 1)
        for address in others:
            with suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                return await self._connect(address, port, share_s)
        return await self._connect(last, port, share_s)

    async def _connect(
        self, address: Address, port: int, seconds: float
    ) -> httpcore.AsyncNetworkStream:
        self._stream = await super().connect_tcp(str(address), port, seconds)
        return self._stream

    async def _addresses(self, host: str, port: int) -> list[Address]:
        # Unknown and forbidden hosts are refused alike, so that nobody learns names of our network.
        try:
            found = [ip_address(host)]
        except ValueError:
            found = [ip_address(text) for text in dict.fromkeys(await self._looked_up(host, port))]
        if not found or not all(self._network.allowed(address) for address in found):
            raise FetchRefused(
                "the URL's host is unknown or not on the public internet",
                reason="address",
                do=_SEND,
            )
        return found

    async def _looked_up(self, host: str, port: int) -> Sequence[str]:
        try:
            return await self._network.look_up(host, port)
        except OSError:
            return []
