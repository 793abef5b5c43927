"""The second model of a replica: its engine, and whom it answers."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

from raycd.api import SecondInfo
from serve.args import Second
from serve.engine import swap
from serve.engine.engine import Engine
from serve.errors import format_error

_log = logging.getLogger("ray.serve")


class SecondModel:
    """A bundle that is loaded once, beside the first. Where that fails, the first answers all.

    Args:
        settings: Which bundle, and whom it answers.
        make: Returns the engine of a bundle's folder. Raises what Engine raises.

    Attributes:
        engine: None: it is not loaded.
        refused: Why it could not be; None where it was.
    """

    def __init__(self, settings: Second, make: Callable[[Path], Engine]) -> None:
        self.settings, self._make = settings, make
        self.engine: Engine | None = None
        self.refused: str | None = None

    async def load(self, first: Engine) -> None:
        """Load it beside the first model, unless it is loaded. It may lose no image of that one."""
        if self.engine is not None:
            return
        try:
            folder = await asyncio.to_thread(swap.folder, self.settings.bundle)
            engine = await asyncio.to_thread(self._make, folder)
            try:
                await asyncio.to_thread(lambda: swap.check(first.without, engine.without))
            except BaseException:
                engine.close()
                raise
            self.engine, self.refused = engine, None
        except Exception as error:  # whatever it is, the first model answers
            self.refused = swap.reason(error)
            _log.error("the second model is not loaded: %s", format_error(error))

    def of(self, user: str) -> Engine | None:
        """Return what answers a user in place of the first model; None: the first does."""
        if self.engine is None:
            return None
        digest = self.engine.bundle.manifest.digest
        return self.engine if is_second(user, self.settings.users, digest) else None

    def info(self) -> SecondInfo:
        """Return what /v1/info says of it."""
        return SecondInfo(
            bundle=self.engine.model.bundle if self.engine else None,
            shadow=0.0,
            users=self.settings.users,
            refused=self.refused,
        )


def is_second(user: str, share: float, experiment: str) -> bool:
    """Return whether a user is one of the share whom the second model answers.

    A user's place between 0 and 1 is a hash of both texts: whoever is in a share is in every larger
    one, and another experiment draws anew.
    """
    hashed = hashlib.sha256(f"{experiment}\n{user}".encode()).digest()
    return int.from_bytes(hashed[:8]) / 2**64 < share
