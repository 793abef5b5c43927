"""Hosts as browsers write them."""

from __future__ import annotations

from ipaddress import IPv6Address


def as_browsers_write(host: str) -> str:
    """Return a host in lower case, an IPv6 address, with or without brackets, as `[::1]`.

    Raises ValueError where it is none.
    """
    if ":" not in host:
        return host.lower()
    return f"[{IPv6Address(host.removeprefix('[').removesuffix(']'))}]"
