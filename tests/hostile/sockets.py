"""The sockets on which a tree of processes listens."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import IPv6Address, ip_address

import psutil


def listening(root: int) -> dict[tuple[str, int], str]:
    """Return (address, port) -> name of the process, for every TCP socket of process `root` and
    those beneath it.
    """
    found = {}
    tree = [psutil.Process(root)]
    for process in tree + tree[0].children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # one that has ended meanwhile
            for socket in process.net_connections("tcp"):
                if socket.status == psutil.CONN_LISTEN:
                    found[socket.laddr.ip, socket.laddr.port] = process.name()
    return found


def is_loopback(text: str) -> bool:
    """Return whether only this machine can reach an address."""
    address = ip_address(text)
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def open_to_others(root: int) -> dict[int, str]:
    """Return port -> name of the process, for all that other machines may get to."""
    return {port: name for (ip, port), name in listening(root).items() if not is_loopback(ip)}
