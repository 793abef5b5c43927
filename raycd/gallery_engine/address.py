"""The address of a search engine: milvus://host:19530/database, or a folder of Milvus Lite."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from raycd import extras
from raycd.errors import ConfigError
from raycd.redact import without_parameters

TOKEN = "RAYCD_MILVUS_TOKEN"  # variable of the environment: an API key, or user:password
PORT = 19530
_EXPECTED = (
    "milvus://<host>:19530, milvus://<host>/<database>, milvus+tls://<host>, "
    "or milvus:///<file>.db of Milvus Lite"
)


@dataclass(frozen=True)
class Address:
    """Where a search engine is, and what opens it."""

    uri: str
    """As pymilvus takes it."""
    endpoint: str
    """host:port; a path of Milvus Lite."""
    database: str = ""
    token: str = field(default="", repr=False)

    @classmethod
    def parse(cls, url: str, environment: Mapping[str, str] = os.environ) -> Self:
        """Read an address; TOKEN of the environment stands for a user and a password in it.

        Raises:
            ConfigError: The address is malformed.
        """
        try:
            parts = urlsplit(url)
            port = parts.port or PORT
        except ValueError as error:
            raise _malformed(url) from error
        token = environment.get(TOKEN, "")
        if parts.username:
            token = ":".join(unquote(half) for half in (parts.username, parts.password or ""))
        if parts.query or parts.fragment or parts.scheme not in ("milvus", "milvus+tls"):
            raise _malformed(url)
        if not parts.hostname:
            file = Path(unquote(parts.path)).expanduser()
            if parts.scheme != "milvus" or file.suffix != ".db":
                raise _malformed(url)
            return cls(str(file.absolute()), str(file.absolute()))
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        scheme = "https" if parts.scheme == "milvus+tls" else "http"
        endpoint = f"{host}:{port}"
        return cls(f"{scheme}://{endpoint}", endpoint, parts.path.strip("/"), token)

    def check_installed(self) -> None:
        """Raise ConfigError unless the client of the engine is installed."""
        packages = ["pymilvus"] if self.uri != self.endpoint else ["pymilvus", "milvus_lite"]
        for package in packages:
            extras.require(package, "the gallery's search engine")

    def connected(self, timeout_s: float) -> Any:
        """Return a pymilvus.MilvusClient. What it raises is pymilvus' own."""
        from pymilvus import MilvusClient

        # It logs every failed call with its traceback; ours say what failed, once
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
        return MilvusClient(
            self.uri, token=self.token, db_name=self.database, timeout=timeout_s, dedicated=True
        )


def _malformed(url: str) -> ConfigError:
    got = without_parameters(url)
    return ConfigError("the address of the search engine is malformed", got=got, expected=_EXPECTED)
