"""What a replica cannot do for a request, as exceptions that know nothing of HTTP.

RequestError            its message may be shown to whoever asked
├── Busy                the replica is full, or its time for the request is over; worth another try
├── NotLoaded           the gallery could not be loaded; worth another try
├── NoSuchGallery       the service has no gallery of this name
├── NoSuchImage         the gallery has no image of this id
├── NoSuchVersion       the gallery has not come to this version yet
├── UnreadablePicture   the picture of an image is missing or broken
├── KeyMissing          there is no API key, or an unknown one
├── KeyTooWeak          the API key may only read
├── KeyElsewhere        the API key is for other galleries
└── UnknownHost         the Host header is not one of the service's

serve/api/problems.py turns each into a problem document.
"""

from __future__ import annotations

import traceback

from raycd.errors import RaycdError
from raycd.redact import without_passwords, without_paths


class RequestError(Exception):
    """A request that cannot be answered. `str(error)` is a sentence for whoever asked."""


class Busy(RequestError):
    """The replica is full, or its time for the request is over; worth another try."""


class NotLoaded(RequestError):
    """The gallery could not be loaded; worth another try."""

    def __init__(self, gallery: str) -> None:
        super().__init__(
            f"the gallery {gallery!r} is not loaded: the service's log says why, and it is tried "
            "again every minute"
        )


class NoSuchGallery(RequestError):
    """The service has no gallery of this name."""

    def __init__(self, gallery: str) -> None:
        super().__init__(f"the service has no gallery {gallery!r}: see /v1/galleries")


class NoSuchImage(RequestError):
    """The gallery has no image of this id."""

    def __init__(self, image_id: str) -> None:
        super().__init__(f"the gallery has no image {image_id!r}")


class NoSuchVersion(RequestError):
    """The gallery has not come to this version yet."""

    def __init__(self, version: int, newest: int) -> None:
        super().__init__(
            f"the gallery has no version {version} yet, the newest is {newest}: "
            "give one that a write has returned"
        )


class UnreadablePicture(RequestError):
    """The picture of an image is missing or broken; `reason` is one word, for programs."""

    def __init__(self, image_id: str, reason: str) -> None:
        super().__init__(f"the picture of {image_id!r} cannot be read")
        self.reason = reason


class KeyMissing(RequestError):
    """There is no API key, or an unknown one; `challenge` is what WWW-Authenticate says."""

    def __init__(self, what: str, challenge: str) -> None:
        super().__init__(f"{what}; send the header Authorization: Bearer <key>")
        self.challenge = challenge


class KeyTooWeak(RequestError):
    """The API key may only read; `challenge` is what WWW-Authenticate says."""

    challenge = 'Bearer error="insufficient_scope", scope="write"'


class KeyElsewhere(RequestError):
    """The API key is for other galleries; `challenge` is what WWW-Authenticate says."""

    challenge = 'Bearer error="insufficient_scope"'


class UnknownHost(RequestError):
    """The Host header is not one of the service's."""


def format_error(error: BaseException) -> str:
    """Return an error in one line for the log, without paths and passwords.

    One of raycd's keeps its message; of any other the type and its line of our code are named.
    """
    if isinstance(error, RaycdError):
        return without_paths(without_passwords(" ".join(str(error).split())))
    raised_at = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] in ("raycd", "serve"):
            raised_at = f" at {module}:{line}"
    return f"{type(error).__name__}{raised_at}"
