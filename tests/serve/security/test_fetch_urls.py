"""URLs that are refused before anything is asked of them."""

from __future__ import annotations

import asyncio
import pickle
from dataclasses import replace

import pytest

from serve.security.fetch import INTERNET, FetchError, FetchRefused, Network, fetch
from tests.serve.security.networks import HOST, at


def refused(url: str, network: Network) -> FetchError:
    with pytest.raises(FetchRefused) as caught:
        asyncio.run(fetch(url, max_bytes=100, timeout_s=5, network=network))
    return caught.value


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "::1",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
    ],
)
@pytest.mark.parametrize("literal", [True, False])
def test_addresses_inside_are_refused_as_they_stand_and_behind_a_name(
    address: str, literal: bool
) -> None:
    written = f"[{address}]" if ":" in address else address
    network = Network(look_up=at() if literal else at(address))
    error = refused(f"https://{written if literal else HOST}/a.jpg", network)
    assert error.reason == "address"
    assert address not in str(error)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        *(
            (f"{scheme}{HOST}/a.jpg", "scheme")
            for scheme in ("http://", "ftp://", "file://", "//", "", "https:/", "gopher://")
        ),
        *(("file:///etc/passwd", "scheme"), ("data:image/png;base64,AA", "scheme"), ("", "scheme")),
        *(
            (f"https://{who}@{HOST}/", "credentials")
            for who in ("a:b", "a", "", "x@y", r"127.0.0.1\\")
        ),
        *((f"https://{HOST}:{port}/", "port") for port in (80, 8443, 22, 0, 99999)),
        *(
            (f"https://{HOST}:{port}/", "malformed")
            for port in ("", "-1", "443x", "４４３", "443:443")
        ),
        *(
            (f"https://{host}/", "malformed")
            for host in (
                *(
                    "2130706433",
                    "0x7f000001",
                    "017700000001",
                    "127.1",
                    "127.0.1",
                    "0177.0.0.1",
                    "0x7f.0.0.1",
                    "127.0.0.01",
                ),
                *("127.0.0.1.", "256.0.0.1", "1.2.3.4.5", "example.0x7f", "example.1"),
                *(
                    f"{HOST}.",
                    f".{HOST}",
                    "a..b",
                    "localhost",
                    "intranet",
                    "-a.org",
                    "a-.org",
                    "a_b.org",
                    "*.org",
                ),
                *(
                    "１２７.0.0.1",
                    "①②⑦.0.0.1",
                    "127。0。0。1",
                    "ⓛocal.host",
                    "bücher.example",
                    "a\u200db.org",
                    "a\u00adb.org",
                ),
                *(
                    "[fe80::1%25eth0]",
                    "[fe80::1%eth0]",
                    "[::1",
                    "::1",
                    "[]",
                    "[127.0.0.1]",
                    "[::1]x",
                    "[::1].org",
                    "[v1.a]",
                ),
                *(
                    "",
                    " ",
                    "a b.org",
                    "a%2eb.org",
                    "%31%32%37.0.0.1",
                    "a\\b.org",
                    "a\tb.org",
                    "a\nb.org",
                    "a\x00b.org",
                ),
                *("a" * 64 + ".org", ".".join(["abcdefgh"] * 30)),
            )
        ),
        *(
            (f"https://{HOST}/a{sign}b", "malformed")
            for sign in ("\r\n", "\x00", "\x7f", "\u2028", "\ud800")
        ),
        (f"https://{HOST}/{'a' * 2048}", "malformed"),
    ],
)
def test_a_url_of_another_form_is_refused_before_anything_is_looked_up(
    url: str, reason: str
) -> None:
    error = refused(url, replace(INTERNET, look_up=at()))
    assert error.reason == reason
    assert HOST not in str(error).replace("images.example.org (xn--", "")


def test_an_error_keeps_its_reason_across_processes() -> None:
    error = refused("http://a.org", INTERNET)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.reason) == (FetchRefused, str(error), "scheme")
