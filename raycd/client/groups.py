"""Groups of a stream that each fit in a request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar


class Sized(Protocol):
    """A part of a request."""

    @property
    def size(self) -> int:
        """Bytes."""


Part = TypeVar("Part", bound=Sized)


def split(parts: Iterable[Part], *, most: int, room: int) -> Iterator[list[Part]]:
    """Group parts: at most `most` of them and `room` bytes; a larger part is a group itself."""
    group: list[Part] = []
    used = 0
    for part in parts:
        if group and (len(group) == most or used + part.size > room):
            yield group
            group, used = [], 0
        group.append(part)
        used += part.size
    if group:
        yield group
