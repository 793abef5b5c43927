"""The API keys in force: a file of their hashes, read again when it changes.

A key is 32 random bytes, so there is nothing to guess and a plain SHA-256 keeps it: the slow,
salted hashes that passwords need would cost every request and gain nothing. `serve/keys.py` changes
the file.
"""

import hashlib
import hmac
import logging
import os
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from raycd.errors import ConfigError, called
from serve.args.galleries import NAME

Scope = Literal["read", "write"]
GalleryName = Annotated[str, Field(pattern=NAME)]

CHECK_S = 1.0  # between two looks at the file: a revoked key may be good that much longer

_log = logging.getLogger("ray.serve")


class Key(BaseModel):
    """An API key as the file has it: without the key itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._@-]{1,64}$")]
    """Whose key it is, or what for; for people, never sent."""
    scope: Scope
    """What it allows; write includes read."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    created: date
    """Date of UTC."""
    galleries: Annotated[tuple[GalleryName, ...], Field(min_length=1)] | None = None
    """Names of the galleries that it is for; None: all."""

    def opens(self, gallery: str) -> bool:
        """Return whether the key is for a gallery."""
        return self.galleries is None or gallery in self.galleries


class KeyDocument(BaseModel):
    """The file of keys, as JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keys: tuple[Key, ...]

    @field_validator("keys")
    @classmethod
    def _names_differ(cls, keys: tuple[Key, ...]) -> tuple[Key, ...]:
        names = [key.name for key in keys]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"doubled names: {', '.join(twice)}")
        return keys


class Keyring:
    """The keys of a file. While it cannot be read, those read last stay in force.

    Args:
        file: As `serve/keys.py` writes it.
        clock: Returns seconds; looks at the file are CHECK_S apart.

    Raises:
        ConfigError: The file cannot be read at first.
    """

    def __init__(self, file: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._file, self._clock = file, clock
        self._looked, self._failed = clock(), False
        self._keys, self._version = _versioned(file)

    def find(self, key: str) -> Key | None:
        """Return the entry of this key; None where it is unknown.

        Takes as long for a wrong key as for a right one.
        """
        self._refresh()
        given, found = digest(key), None
        for kept in self._keys:
            if hmac.compare_digest(kept.sha256, given):
                found = kept  # and on through all, so that the time does not show which
        return found

    def _refresh(self) -> None:
        now = self._clock()
        if now - self._looked < CHECK_S:
            return
        self._looked = now
        try:
            if self._failed or _version(self._file.stat()) != self._version:
                self._keys, self._version = _versioned(self._file)
            self._failed = False
        except (OSError, ConfigError):
            if not self._failed:  # once, not every second
                _log.error(
                    "the file of API keys is gone, unreadable or malformed: "
                    "the keys read last stay in force"
                )
            self._failed = True


def digest(key: str) -> str:
    """Return the SHA-256 of a key, in hex."""
    return hashlib.sha256(key.encode()).hexdigest()


def read(file: Path) -> tuple[Key, ...]:
    """Return the keys of a file. Raises ConfigError, which never shows what the file holds."""
    return _versioned(file)[0]


def _versioned(file: Path) -> tuple[tuple[Key, ...], tuple[int, ...]]:
    try:
        with file.open("rb") as opened:
            version = _version(os.fstat(opened.fileno()))  # of what is read, not of today's name
            return KeyDocument.model_validate_json(opened.read()).keys, version
    except OSError as error:
        raise ConfigError(
            f"the file of API keys cannot be read: {file}",
            got=error.strerror,
            do=f"make one with {called('serve/keys.py')} add, or fix its path or its permissions",
        ) from None
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(str(part) for part in wrong["loc"])
        raise ConfigError(
            f"the file of API keys is malformed: {file}",
            got=f"{field}: {wrong['msg']}" if field else wrong["msg"],
            expected=f"what {called('serve/keys.py')} add writes",
            do="restore it, or delete it and make new keys",
        ) from None


def _version(status: os.stat_result) -> tuple[int, ...]:
    return status.st_mtime_ns, status.st_size, status.st_ino
