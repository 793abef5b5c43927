"""Fetching by URL, from real https servers on loopback whose certificates a test's own authority
signs.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from serve.security.fetch import (
    INTERNET,
    FetchError,
    FetchFailed,
    FetchRefused,
    Network,
    fetch,
    look_up,
)
from tests.serve.https import DAY, Answer, Authority, Server, serving
from tests.serve.security.networks import HOST, at, only

IMAGE = bytes(range(256)) * 40
OK = b"HTTP/1.1 200 OK\r\n"
WHOLE = OK + b"Content-Type: text/html\r\nContent-Length: %d\r\n\r\n" % len(IMAGE) + IMAGE


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def tls(authority: Authority) -> ssl.SSLContext:
    return authority.server(HOST)


Fetch = Callable[..., tuple[bytes | FetchError, Server]]


@pytest.fixture
def fetched(authority: Authority, tls: ssl.SSLContext) -> Fetch:
    """Fetch https://HOST:<port> + `path` from a server that gives `answer`; also returns what the
    server saw.
    """

    def do(answer: bytes | Answer, path: str = "/a.jpg", *, host: str = HOST, **how: Any) -> Any:
        network = Network(look_up=at("127.0.0.1"), allowed=only("127.0.0.1"), tls=authority.trust)
        limits = {"max_bytes": 20_000, "timeout_s": 10.0} | {
            k: how.pop(k) for k in ("max_bytes", "timeout_s") if k in how
        }
        context = how.pop("server", tls)

        async def run() -> Any:
            async with serving(answer, context) as server:
                try:
                    url = f"https://{host}:{server.port}{path}"
                    return await fetch(
                        url, **limits, network=replace(network, port=server.port, **how)
                    ), server
                except FetchError as error:
                    return error, server

        return asyncio.run(run())

    return do


def test_the_bytes_come_whatever_their_content_type_says(fetched: Fetch) -> None:
    got, server = fetched(WHOLE, "/ä b.jpg?size=1&x=%20#part")
    assert got == IMAGE
    [line, *headers] = server.requests[0].splitlines()
    assert line == "GET /%C3%A4%20b.jpg?size=1&x=%20 HTTP/1.1"
    assert f"Host: {HOST}:{server.port}" in headers
    assert "Accept-Encoding: identity" in headers
    assert not any(
        header.lower().startswith(("cookie", "authorization", "referer")) for header in headers
    )


def test_bytes_come_in_chunks_or_until_the_connection_ends_too(fetched: Fetch) -> None:
    chunked = OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    assert fetched(chunked)[0] == b"abcde"
    assert fetched(OK + b"\r\nabc")[0] == b"abc"


def test_a_host_may_be_an_address_of_which_it_has_the_certificate(
    fetched: Fetch, authority: Authority
) -> None:
    got, server = fetched(
        WHOLE, host="127.0.0.1", server=authority.server("127.0.0.1"), look_up=at()
    )
    assert got == IMAGE
    assert server.connections == 1


def test_an_ipv6_host_is_asked_by_its_address(authority: Authority) -> None:
    async def run() -> tuple[bytes, Server]:
        async with serving(WHOLE, authority.server("::1"), address="::1") as server:
            network = Network(server.port, at(), only("::1"), authority.trust)
            return await fetch(
                f"https://[::1]:{server.port}", max_bytes=99_999, timeout_s=5, network=network
            ), server

    try:
        got, server = asyncio.run(run())
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    assert got == IMAGE
    assert f"Host: [::1]:{server.port}" in server.requests[0]


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
def test_a_redirect_is_refused_and_not_followed(fetched: Fetch, status: int) -> None:
    answer = (
        f"HTTP/1.1 {status} Elsewhere\r\nLocation: https://{HOST}/b\r\nContent-Length: 0\r\n\r\n"
    )
    got, server = fetched(answer.encode())
    assert isinstance(got, FetchRefused)
    assert (got.reason, server.connections) == ("redirect", 1)


@pytest.mark.parametrize("status", [204, 206, 404, 500])
def test_another_status_than_200_is_a_failure(fetched: Fetch, status: int) -> None:
    got, _ = fetched(f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n".encode())
    assert isinstance(got, FetchFailed)
    assert got.reason == "status"
    assert str(status) in str(got)


def test_a_size_that_is_declared_too_large_is_refused_before_the_body(fetched: Fetch) -> None:
    got, _ = fetched(OK + b"Content-Length: 20001\r\n\r\n", timeout_s=5.0)
    assert isinstance(got, FetchRefused)
    assert got.reason == "too_large"
    assert str(got).startswith("the image at the URL is larger than the limit")
    assert "at most 20000 bytes (max_body_bytes)" in str(got)
    assert fetched(WHOLE, max_bytes=len(IMAGE))[0] == IMAGE


@pytest.mark.parametrize("chunked", [False, True])
def test_a_size_that_is_not_declared_is_cut_off_at_the_limit(fetched: Fetch, chunked: bool) -> None:
    sent = 0

    async def flood(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(OK + (b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"\r\n"))
        block = b"%x\r\n" % 65_536 + b"x" * 65_536 + b"\r\n" if chunked else b"x" * 65_536
        while sent < 500 * len(block):
            writer.write(block)
            await writer.drain()
            sent += len(block)

    got, _ = fetched(flood)
    assert isinstance(got, FetchRefused)
    assert got.reason == "too_large"
    assert sent < 100 * 65_536  # what socket buffers swallow


def test_a_compressed_body_is_refused(fetched: Fetch) -> None:
    got, _ = fetched(OK + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc")
    assert isinstance(got, FetchRefused)
    assert got.reason == "encoding"
    assert fetched(OK + b"Content-Encoding: identity\r\nContent-Length: 3\r\n\r\nabc")[0] == b"abc"


@pytest.mark.parametrize(
    "answer", [OK + b"Content-Length: 9\r\n\r\nabc", b"SSH-2.0-OpenSSH\r\n\r\n", b""]
)
def test_a_broken_answer_is_a_failure(fetched: Fetch, answer: bytes) -> None:
    got, _ = fetched(answer)
    assert isinstance(got, FetchFailed)
    assert got.reason == "protocol"


@pytest.mark.parametrize(
    "begin", [b"HTTP/1.1 200 OK\r\nX: ", OK + b"\r\n"], ids=["headers", "body"]
)
def test_a_drip_ends_at_the_time_limit(fetched: Fetch, begin: bytes) -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(begin)
        for _ in range(200):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)

    began = time.monotonic()
    got, _ = fetched(drip, timeout_s=0.5)
    assert isinstance(got, FetchFailed)
    assert got.reason == "timeout"
    assert time.monotonic() - began < 3


def test_a_server_that_says_nothing_is_left_at_the_time_limit(authority: Authority) -> None:
    async def run() -> tuple[str, int]:
        async with serving(b"", None) as server:
            network = Network(server.port, at("127.0.0.1"), only("127.0.0.1"), authority.trust)
            with pytest.raises(FetchFailed) as caught:
                await fetch(
                    f"https://{HOST}:{server.port}/", max_bytes=9, timeout_s=0.3, network=network
                )
            for _ in range(100):  # until the server has heard of it
                await asyncio.sleep(0.01 if server.ended == 0 else 0)
            return caught.value.reason, server.ended

    assert asyncio.run(run()) == ("timeout", 1)


def test_a_look_up_that_hangs_ends_at_the_time_limit(fetched: Fetch) -> None:
    async def hang(host: str, port: int) -> list[str]:
        await asyncio.sleep(60)
        return []

    got, _ = fetched(WHOLE, timeout_s=0.2, look_up=hang)
    assert isinstance(got, FetchFailed)
    assert got.reason == "timeout"


def test_a_closed_port_is_a_failure_and_the_next_address_is_tried(fetched: Fetch) -> None:
    both = only("127.0.0.1", "127.0.0.9")
    assert fetched(WHOLE, look_up=at(["127.0.0.9", "127.0.0.1"]), allowed=both)[0] == IMAGE
    got, server = fetched(WHOLE, look_up=at("127.0.0.9"), allowed=both)
    assert isinstance(got, FetchFailed)
    assert (got.reason, server.connections) == ("unreachable", 0)


def test_a_certificate_of_another_host_is_a_failure(fetched: Fetch, authority: Authority) -> None:
    got, server = fetched(WHOLE, server=authority.server("other.example.org"))
    assert isinstance(got, FetchFailed)
    assert (got.reason, server.requests) == ("tls", [])
    assert "mismatch" in str(got)


def test_an_expired_certificate_is_a_failure(fetched: Fetch, authority: Authority) -> None:
    got, server = fetched(WHOLE, server=authority.server(HOST, valid=-DAY))
    assert isinstance(got, FetchFailed)
    assert (got.reason, server.requests) == ("tls", [])
    assert "expired" in str(got)


def test_a_certificate_of_an_unknown_authority_is_a_failure(fetched: Fetch, tmp_path: Path) -> None:
    for stranger in (Authority(tmp_path).trust, INTERNET.tls):
        got, server = fetched(WHOLE, tls=stranger)
        assert isinstance(got, FetchFailed)
        assert (got.reason, server.requests) == ("tls", [])


def test_a_damaged_record_of_tls_is_a_failure(fetched: Fetch) -> None:
    async def damaged(writer: asyncio.StreamWriter) -> None:
        beneath: Any = writer.transport
        beneath._ssl_protocol._transport.write(b"\x17\x03\x03\x00\x20" + b"x" * 32)

    got, _ = fetched(damaged)
    assert isinstance(got, FetchFailed)
    assert got.reason == "protocol"


def test_the_server_is_told_the_name_of_the_host(fetched: Fetch, authority: Authority) -> None:
    names = []
    context = authority.server(HOST)
    context.sni_callback = lambda _, name, __: names.append(name)
    assert fetched(WHOLE, server=context)[0] == IMAGE
    assert names == [HOST]


def test_proxies_of_the_environment_are_ignored(
    fetched: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert fetched(WHOLE)[0] == IMAGE


def test_dns_that_changes_its_answer_after_the_check_has_no_effect(
    authority: Authority, tls: ssl.SSLContext
) -> None:
    async def run() -> tuple[bytes, int, int]:
        async with (
            serving(WHOLE, tls) as public,
            serving(OK + b"\r\nsecret", tls, address="127.0.0.2", port=public.port) as private,
        ):
            network = Network(
                public.port, at("127.0.0.1", "127.0.0.2"), only("127.0.0.1"), authority.trust
            )
            url = f"https://{HOST}:{public.port}/"
            first = await fetch(url, max_bytes=99_999, timeout_s=5, network=network)
            with pytest.raises(FetchRefused, match="not on the public internet"):
                await fetch(url, max_bytes=99_999, timeout_s=5, network=network)
            return first, public.connections, private.connections

    assert asyncio.run(run()) == (IMAGE, 1, 0)


@pytest.mark.parametrize(
    "answer",
    [["127.0.0.1", "127.0.0.2"], ["127.0.0.2", "127.0.0.1"], ["127.0.0.1", "fe80::1%lo"], []],
)
def test_one_forbidden_address_forbids_the_host(fetched: Fetch, answer: list[str]) -> None:
    got, server = fetched(WHOLE, look_up=at(answer))
    assert isinstance(got, FetchRefused)
    assert (got.reason, server.connections) == ("address", 0)


def test_an_unknown_host_is_told_like_a_private_one(fetched: Fetch) -> None:
    async def unknown(host: str, port: int) -> list[str]:
        raise OSError("Name or service not known")

    messages = {str(fetched(WHOLE, look_up=look)[0]) for look in (unknown, at("10.0.0.1"), at([]))}
    assert len(messages) == 1


def test_the_scheme_and_the_host_may_be_in_capitals(fetched: Fetch) -> None:
    assert fetched(WHOLE, host=HOST.upper())[0] == IMAGE


def test_the_systems_resolver_is_asked_in_a_thread() -> None:
    found = asyncio.run(look_up("localhost", 443))
    assert {ip_address(address).is_loopback for address in found} == {True}
