"""Name servers and policies that a test sets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from serve.security.addresses import Address

HOST = "images.example.org"  # no name server knows it: whoever looks it up again gets nowhere


def at(*answers: str | Sequence[str]) -> Callable[[str, int], Awaitable[list[str]]]:
    """Return a resolver of these answers in turn; one more question is an IndexError."""
    left = [[answer] if isinstance(answer, str) else list(answer) for answer in answers]

    async def resolve(host: str, port: int) -> list[str]:
        return left.pop(0)

    return resolve


def only(*addresses: str) -> Callable[[Address], bool]:
    """Return a policy under which nothing but these addresses is public."""
    return lambda address: str(address) in addresses
