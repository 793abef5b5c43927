"""The split of users between two models, the same in every replica and after each restart."""

from __future__ import annotations

import hashlib


def is_second(user: str, share: float, experiment: str) -> bool:
    """Return whether a user is one of the share whom the second model answers.

    A user's place between 0 and 1 is a hash of both texts: whoever is in a share is in every larger
    one, and another experiment draws anew.
    """
    hashed = hashlib.sha256(f"{experiment}\n{user}".encode()).digest()
    return int.from_bytes(hashed[:8]) / 2**64 < share
