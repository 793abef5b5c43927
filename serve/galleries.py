"""The galleries of a replica's process: a `Replica` for each, of queues and threads of its own.

So one gallery that is slow, full or without its database does not keep the others waiting; what
they share is the process, with its cores and memory, and encoders of the same files.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import ValidationError

from raycd.api import BundleInfo
from raycd.bundle import SharedEncoders
from serve.args import DEFAULT, ServeArgs, Wanted
from serve.engine import swap
from serve.errors import NoSuchGallery, NotLoaded, format_error
from serve.replica import Observer, Replica
from serve.second.shadow import Shadow

AGAIN_S = 60.0  # seconds after which a gallery that could not be loaded is tried again

_log = logging.getLogger("ray.serve")


class Galleries:
    """The replicas by their galleries' names. Used from one event loop, after `__init__`.

    The default one has to be there. Another one that cannot be loaded is refused until it can.

    Args:
        args: The settings.
        name: What the replicas of this service have in common, and no other service has.
        observer: Returns what records the work of a gallery.
        shadow: What has a second model answer, unseen, in the default gallery.

    Attributes:
        names: Of all galleries, the default's first.
        refused: Why a gallery is not loaded, by its name.

    Raises:
        GalleryError: The database of the default gallery cannot be opened.
    """

    def __init__(
        self,
        args: ServeArgs,
        *,
        name: str,
        observer: Callable[[str], Observer],
        shadow: Shadow | None = None,
    ) -> None:
        self.args, self._name, self._observer, self._shadow = args, name, observer, shadow
        self.names = (DEFAULT, *args.galleries)
        self.refused: dict[str, str] = {}
        self._encoders = SharedEncoders()
        self._opened = {DEFAULT: self._open(DEFAULT)}
        self._wanted: dict[str, Any] = Wanted(bundle=args.bundle).model_dump()
        self._loading, self._tried = asyncio.Lock(), time.monotonic()
        self._retrying: asyncio.Task[None] | None = None

    def _open(self, gallery: str) -> Replica:
        own = gallery == DEFAULT
        return Replica(
            self.args.of(gallery),
            name=self._name if own else f"{self._name}, gallery {gallery}",
            observer=self._observer(gallery),
            shadow=self._shadow if own else None,
            gallery=gallery,
            encoders=self._encoders,
        )

    def __getitem__(self, gallery: str) -> Replica:
        """Return the replica of a gallery. Raises NoSuchGallery or NotLoaded."""
        if gallery not in self.names:
            raise NoSuchGallery(gallery)
        found = self._opened.get(gallery)
        if found is None or not found.is_loaded:
            raise NotLoaded(gallery)
        return found

    def __iter__(self) -> Iterator[Replica]:
        """Iterate over those that are loaded."""
        return (found for found in list(self._opened.values()) if found.is_loaded)

    async def change_bundles(self, wanted: dict[str, Any]) -> None:
        """Have each load or change to the bundle that is wanted of it, or refuse that alone.

        Raises:
            RaycdError: The default gallery has none to go on with.
        """
        self._wanted = wanted
        named = wanted.get("galleries")
        if isinstance(named, dict) and (unknown := named.keys() - set(self.names)):
            _log.error("user_config names galleries that there are not: %s", ", ".join(unknown))
        await self._load(self.names)

    async def _load(self, names: tuple[str, ...]) -> None:
        # One by one: beside those at work, memory holds one more.
        async with self._loading:
            for gallery in names:
                try:
                    if gallery not in self._opened:  # a database may let wait
                        opened = await asyncio.to_thread(self._open, gallery)
                        self._opened[gallery] = opened
                    await self._opened[gallery].change_bundle(self._wanted_of(gallery))
                    self.refused.pop(gallery, None)
                except Exception as error:
                    if gallery == DEFAULT:
                        raise
                    if gallery not in self.refused:  # once, not every minute
                        said = format_error(error)
                        _log.error("the gallery %s is not loaded: %s", gallery, said)
                    self.refused[gallery] = swap.reason(error)
            self._tried = time.monotonic()  # a load may take longer than AGAIN_S

    def _wanted_of(self, gallery: str) -> dict[str, Any]:
        try:
            return Wanted.model_validate(self._wanted).of(self.args, gallery).model_dump()
        except ValidationError:  # which the replica says
            return self._wanted

    async def check_canaries(self) -> None:
        """Raise where one that is loaded cannot search. Has others tried again, now and then."""
        waiting = tuple(gallery for gallery in self.names if gallery in self.refused)
        idle = not self._loading.locked()
        if waiting and idle and time.monotonic() - self._tried > AGAIN_S:
            self._tried = time.monotonic()  # the task has not begun
            self._retrying = asyncio.create_task(self._load(waiting))
        await asyncio.gather(*(replica.check_canary() for replica in self))

    def bundle_infos(self) -> dict[str, BundleInfo]:
        """Return by gallery which bundle is served, and why another was refused."""
        none = {
            gallery: BundleInfo(digest="none", created="", refused=reason)
            for gallery, reason in self.refused.items()
        }
        return {replica.gallery: replica.bundle_info() for replica in self} | none

    def close(self) -> None:
        """Write the feedback that waits."""
        for replica in self._opened.values():
            replica.close()
