"""Addresses of search engines."""

from __future__ import annotations

import pytest

from raycd.errors import ConfigError
from raycd.gallery_engine.address import TOKEN, Address


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("milvus://host", Address("http://host:19530", "host:19530")),
        ("milvus://host:1/shop", Address("http://host:1", "host:1", "shop")),
        ("milvus://[::1]:1", Address("http://[::1]:1", "[::1]:1")),
        ("milvus+tls://host", Address("https://host:19530", "host:19530")),
        ("milvus://u:p%40@host", Address("http://host:19530", "host:19530", "", "u:p@")),
        ("milvus:///data/x.db", Address("/data/x.db", "/data/x.db")),
    ],
)
def test_an_address_says_host_database_and_token(url: str, expected: Address) -> None:
    assert Address.parse(url, {}) == expected
    assert "p@" not in repr(expected)


def test_the_token_comes_from_the_environment() -> None:
    assert Address.parse("milvus://host", {TOKEN: "a key"}).token == "a key"


@pytest.mark.parametrize(
    "url",
    [
        "http://host",
        "milvus://host:x",
        "milvus:///x",
        "milvus://u:secret@h?token=secret",
        "milvus://u:secret?secret@h",
        "milvus://u:secret/s#secret@h",
    ],
)
def test_an_address_that_is_malformed_is_told_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError, match="malformed") as caught:
        Address.parse(url, {})
    assert "secret" not in str(caught.value)


def test_a_client_that_is_not_installed_is_named_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("raycd.extras.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pymilvus") as caught:
        Address.parse("milvus://host", {}).check_installed()
    assert "raycd[milvus]" in str(caught.value)
