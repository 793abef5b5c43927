"""A stream in parts that a request can carry."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar


class Sized(Protocol):
    """Something that takes room in a request."""

    @property
    def size(self) -> int:
        """Bytes."""


Part = TypeVar("Part", bound=Sized)


def split(parts: Iterable[Part], *, most: int, room: int) -> Iterator[list[Part]]:
    """As many parts at once as fit: at most `most`, and `room` bytes; one that is larger than that
    goes alone.
    """
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
